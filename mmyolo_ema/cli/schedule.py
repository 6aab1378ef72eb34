"""Tell what momentum and gamma mean for a run: what the average holds at each point of it, and what would suit it."""

import argparse
from dataclasses import replace
from functools import partial
from itertools import starmap
from pathlib import Path
from typing import Any, Optional

from matplotlib.figure import Figure

from mmyolo_ema.cli.arguments import check_new
from mmyolo_ema.cli.config import read_config, read_plan
from mmyolo_ema.cli.ending import stop
from mmyolo_ema.cli.schedule_picture import draw_schedules
from mmyolo_ema.cli.schedule_tables import Setting, recipes_table, report
from mmyolo_ema.cli.tables import show
from mmyolo_ema.files import write_new
from mmyolo_ema.printing import say
from mmyolo_ema.run_plan import RunPlan
from mmyolo_ema.schedules import Ramp, in_updates, of_age, profile, rescaled, rounded, three_digits


def check_plot(path: Path) -> None:
    if path.suffix[1:] not in Figure().canvas.get_supported_filetypes():
        stop(f'--plot must name a picture such as F.png, but got {path}')
    check_new(path, '--plot')


def settings_of(args: argparse.Namespace, plan: Optional[RunPlan]) -> list[Setting]:
    """Returns the schedules of the config's averages, and those that are like the main one's but for the flags.

    Stops if there are none.
    """
    if plan is not None and plan.place is None and not (args.momentum or args.mean_age is not None):
        stop(
            f'the config {args.config} has no EMAHook in custom_hooks: pass --mean-age for what would suit it, or '
            '--momentum'
        )
    base: Any = Ramp() if plan is None else plan.schedule
    options = [dict(momentum=momentum) for momentum in args.momentum or []]
    if args.gamma:
        gammas = args.gamma * len(options) if len(args.gamma) == 1 else args.gamma
        options = [dict(option, gamma=gamma) for option, gamma in zip(options, gammas)]
    own = [Setting('config', base), *starmap(Setting, plan.further.items())] if plan and plan.place is not None else []
    try:
        return own + [
            Setting(f'setting {index}', replace(base, **option)) for index, option in enumerate(options, start=1)
        ]
    except TypeError:
        flags = ' and '.join(f'--{name}' for name in options[0])
        stop(f"{flags}: the average of {args.config}, {type(base).__name__.lower()}, doesn't have that")


def suggestions(args: argparse.Namespace, plan: Optional[RunPlan], updates: int) -> dict[str, Ramp]:
    """Returns the schedules that were asked for, by the reason, with three significant digits; stops at none."""
    wanted = {}
    interval = plan.schedule.interval if plan else 1
    if args.mean_age is not None:
        try:
            age = in_updates(args.mean_age, updates, plan and plan.updates_per_epoch)
            reason = f'a mean age of {rounded(age)} updates ({args.mean_age}) at the end'
            wanted[reason] = of_age(updates, age, interval)
        except ValueError as error:
            stop(f'--mean-age: {error}')
    if args.scale_from_batch and plan is not None:
        if plan.place is None or not isinstance(plan.schedule, Ramp) or has_mean_age(plan.hook):
            stop(
                '--scale-from-batch is for a config with momentum and gamma of ExpMomentumEMA'
                + (': its mean_age follows the run' if has_mean_age(plan.hook) else '')
            )
        if plan.batch_size is None:
            stop(f'--scale-from-batch: the config {args.config} has no train_dataloader.batch_size')
        factor = plan.batch_size / args.scale_from_batch
        reason = f'{plan.batch_size} images in an update instead of {args.scale_from_batch}'
        wanted[reason] = rescaled(plan.schedule.momentum, plan.schedule.gamma, factor)
    if any(momentum > 0.99 for momentum, _ in wanted.values()):
        stop('there is no average to suggest: its momentum would be above 0.99, so that it would equal the model')
    return {
        reason: Ramp(three_digits(momentum), three_digits(gamma), interval)
        for reason, (momentum, gamma) in wanted.items()
    }


def has_mean_age(hook: dict[str, Any]) -> bool:
    return hook.get('mean_age') is not None


def print_suggestion(reason: str, schedule: Ramp, plan: Optional[RunPlan], mean_age: Optional[str]) -> None:
    """Prints a schedule as a line for a config, and as options of the command line."""
    hook: dict[str, Any] = dict(type='mmyolo_ema.EMAHook') if plan is None else dict(plan.hook)
    if not (plan and isinstance(plan.schedule, Ramp)):
        hook['ema_type'] = 'mmyolo_ema.ExpMomentumEMA'
    if has_mean_age(hook):
        hook.update(mean_age=mean_age)
    else:
        hook.update(momentum=schedule.momentum, gamma=schedule.gamma)
    say(f'For {reason}:')
    say('    dict(' + ', '.join(f'{key}={literal(value)}' for key, value in hook.items()) + ')')
    if plan is not None and plan.place is not None:
        changed = [key for key in ('ema_type', 'mean_age', 'momentum', 'gamma') if hook.get(key) != plan.hook.get(key)]
        options = ' '.join(f'custom_hooks.{plan.place}.{key}={literal(hook[key]).strip(chr(39))}' for key in changed)
        say(f'    --cfg-options {options}' if changed else '    which the config has')
    say('')


def literal(value: object) -> str:
    """Returns a value of a config as Python writes it."""
    if isinstance(value, type):  # as its registry knows it
        return repr(f'{value.__module__.split(".")[0]}.{value.__name__}')
    return f'{value:.12g}' if isinstance(value, float) else repr(value)


def main(args: argparse.Namespace) -> None:
    if args.plot is not None:
        check_plot(args.plot)
    plan = None if args.config is None else read_plan(read_config(args.config, args.cfg_options), args)
    updates, per_epoch = (plan.updates, plan.updates_per_epoch) if plan else (args.iters, None)
    settings = settings_of(args, plan)
    suggested = suggestions(args, plan, updates)
    settings += [Setting(f'suggestion for {reason}', schedule) for reason, schedule in suggested.items()]
    if args.plot is not None:
        curves = {setting.label: profile(setting.schedule, updates) for setting in settings}
        try:
            write_new(args.plot, partial(draw_schedules, curves))
        except (OSError, RuntimeError) as error:
            stop(f'{args.plot} cannot be written: {error}')
    reports = [report(setting, updates, per_epoch, args.all) for setting in settings]
    print_run(plan, updates, args)
    for described in reports[: len(settings) - len(suggested)]:
        say(described.setting.label, *(f'    {line}' for line in described.answer), '')
    for reason, schedule in suggested.items():
        print_suggestion(reason, schedule, plan, args.mean_age)
    for described in reports:
        show(described.table)
        say('', *(described.before if args.all else []))
    if args.all:
        say('')
        show(recipes_table(reports, per_epoch))
        say('')
    if args.plot is not None:
        say(f'{args.plot}  the picture')


def print_run(plan: Optional[RunPlan], updates: int, args: argparse.Namespace) -> None:
    if plan is None:
        say(f'{updates:,} updates as given', '')
        return
    begin = f'; it begins after {plan.begin:,} others, and all below counts from there' if plan.begin else ''
    epoch = f', {rounded(plan.updates_per_epoch)} in an epoch' if plan.updates_per_epoch else ''
    say(f'{args.config}: {updates:,} updates of the average{epoch}{begin}', f'    {plan.origin}', '')
