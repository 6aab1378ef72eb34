"""Choose the horizon of the average after the training, from the checkpoints that a run left."""

import argparse
from functools import partial
from typing import Optional

from mmengine.config import Config

from mmyolo_ema.checkpoint import listed, load_all, read
from mmyolo_ema.checkpoint.weights import averaged_weights
from mmyolo_ema.cli import posthoc_tables as tables
from mmyolo_ema.cli.arguments import check_new
from mmyolo_ema.cli.config import build_model, read_config, read_plan
from mmyolo_ema.cli.ending import stop
from mmyolo_ema.cli.posthoc_picture import draw_horizons
from mmyolo_ema.cli.progress import Bar
from mmyolo_ema.cli.tables import show
from mmyolo_ema.files import replace
from mmyolo_ema.posthoc import StoredRun, read_run, write
from mmyolo_ema.posthoc.evaluation import Evaluation
from mmyolo_ema.posthoc.plan import kept_by
from mmyolo_ema.posthoc.reconstruction import MOST_ERROR, USUAL_ERROR
from mmyolo_ema.posthoc.sweep import sweep as sweep_run
from mmyolo_ema.posthoc.targets import horizons_around, target
from mmyolo_ema.printing import say
from mmyolo_ema.schedules import rounded

ERROR = (
    'reconstruction error: how far the mixture of updates is from the wanted one, not an error of a metric. '
    f'Up to {USUAL_ERROR:.0%} is close; above {MOST_ERROR:.0%} no file is written.'
)
BY_NAME = (
    'The class of this average averages a tensor once for each of its names. So shared tensors followed another '
    "schedule, and set the error; ema_type='mmyolo_ema.ExpMomentumEMA' averages them once."
)
NO_HORIZON = 'name a --horizon: the average of this run has none'


def plan(args: argparse.Namespace) -> None:
    cfg = read_config(args.config, args.cfg_options)
    planned = read_plan(cfg, args)
    if planned.place is None:
        stop(f'the config {args.config} has no EMAHook in custom_hooks (a list in a config replaces that of its base)')
    settings = kept_by(cfg, planned, build_model(cfg).state_dict())
    texts = args.horizon or horizons_around(planned.schedule) or stop(NO_HORIZON)
    wanted = [target(text, planned.schedule, planned.updates, planned.updates_per_epoch) for text in texts]
    say(f'{planned.updates:,} updates, {planned.schedule}: {planned.origin}', '')
    show(tables.plan_table(settings, wanted, planned.updates))
    say('', ERROR)
    say(*tables.remarks_on_ramp(wanted, planned.updates))
    if settings[0].multiplicities != [1]:
        say(BY_NAME)
    if len(settings) > 1:
        say('To make averages from half to twice the horizon, add one of these to custom_hooks:')
        say(*(f'    {kept.advice}' for kept in settings[1:]))
    if len(settings) > 2:
        say('Each further average (second_horizon, averages) takes the memory of one more model.')


def fit(args: argparse.Namespace) -> None:
    run = read_run(args.work_dir)
    print_run(run)
    texts = args.horizon or horizons_around(run.schedule, (0.25, 0.5, 2, 4)) or stop(NO_HORIZON)
    averages = [run.average(text) for text in texts]
    show(tables.fit_table(averages))
    say('', ERROR, 'amplification: by how much rounding errors of the files grow.')
    say(*tables.remarks_on_ramp([average.target for average in averages], run.updates))
    if args.coefficients:
        say('')
        show(tables.coefficients_table(averages))


def build(args: argparse.Namespace) -> None:
    for path in args.out:
        if path.suffix != '.pth':
            stop(f'-o must name .pth files, but got {path}')
        check_new(path, '-o')
    if len({path.resolve() for path in args.out}) < len(args.out):
        stop(f'-o names a file twice: {" ".join(map(str, args.out))}')
    cfg = read_config(args.config, args.cfg_options) if args.config else None
    run = read_run(args.work_dir)
    print_run(run)
    averages = {path: run.average(text) for path, text in zip(args.out, args.horizon)}
    write(averages, Bar, cfg, args.bn_batches or 0)
    remark = f', BatchNorm estimated anew on {args.bn_batches} training batches' if args.bn_batches else ''
    for path, average in averages.items():
        say(
            f'{path}  {average.target.name}: reconstruction error {average.error:.2%}, amplification '
            f'{average.worst.amplification:.1f}, mean age {rounded(average.worst.mean_age)} updates{remark}'
        )
        if average.error > USUAL_ERROR:
            say(
                f'warning: a reconstruction error above {USUAL_ERROR:.0%} may cost accuracy; compare with the average '
                'of the run'
            )
    say(*tables.remarks_on_ramp([average.target for average in averages.values()], run.updates))


def sweep(args: argparse.Namespace) -> None:
    cfg = read_config(args.config, args.cfg_options)
    best, measured, picture = (
        args.work_dir / name for name in ('best_posthoc.pth', 'posthoc_sweep.json', 'posthoc_sweep.png')
    )
    if best.exists() and not measured.exists():
        stop(f'{best} exists, but {measured} does not: move it away')
    run = read_run(args.work_dir)
    print_run(run)
    texts = args.horizon or horizons_around(run.schedule) or stop(NO_HORIZON)
    for text in texts:  # what is wrong with a text is said before anything is built
        target(text, run.schedule, run.updates, run.updates_per_epoch)
    load_all(averaged_weights(read(run.files[-1].path, mmap=True)), build_model(cfg))
    with Bar(unit='batch') as bar:
        evaluation = Evaluation(cfg, args.work_dir / 'posthoc_sweep', bar.update)
        if not evaluation.is_coco:
            say(
                "Whether the best is better by more than chance will not be told: that is for COCO's mAP only, and "
                f'the evaluator is {evaluation.evaluator}.',
                '',
            )
        # Both kinds of stored weights, the horizons, and at most four around the best.
        bar.reset((2 + len(texts) + 4) * evaluation.batches)
        result = sweep_run(run, evaluation, texts, measured, *metric_of(cfg, args.metric), args.resamples, Bar)
    show(tables.sweep_table(result))
    for name, error in result.dropped.items():
        say(f'left out: {name}, whose reconstruction error would be {tables.percent(error)}')
    replace(picture, partial(draw_horizons, result))
    if best.exists():
        say(f'{best} is written anew')
    result.best.average.write(best, progress=Bar, replaces=True)
    say('', *tables.verdict(result))
    say(f'{best}, {picture}, {measured}')


def metric_of(cfg: Config, named: Optional[str]) -> tuple[Optional[str], bool]:
    """Returns the metric to choose by, None for the usual one, and whether less of it is better."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    wanted, rule = (
        value[0] if isinstance(value, list) and value else value for value in (hook.get('save_best'), hook.get('rule'))
    )
    # The raw weights' metrics of a training are measured by the name of the average's here.
    configured = wanted.removesuffix('_origin') if isinstance(wanted, str) and wanted != 'auto' else None
    metric = named or configured
    if rule is not None and metric == configured:
        return metric, rule == 'less'
    # As MMEngine tells where it is not told.
    return metric, 'loss' in (metric or '').lower()


def print_run(run: StoredRun) -> None:
    epoch = f', {rounded(run.updates_per_epoch)} in an epoch' if run.updates_per_epoch else ''
    say(f'{len(run.files)} checkpoints of updates {run.files[0].updates:,} to {run.updates:,}{epoch}, {run.schedule}')
    for why in dict.fromkeys(run.left_out.values()):
        names = [path.name for path, reason in run.left_out.items() if reason == why]
        say(f'{listed("not used: ", names)} ({why})')
    if not run.once and run.multiplicities != [1]:
        say(BY_NAME)
    say('')


COMMANDS = dict(plan=plan, fit=fit, build=build, sweep=sweep)


def main(args: argparse.Namespace) -> None:
    try:
        COMMANDS[args.command](args)
    except BrokenPipeError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        stop(error)
