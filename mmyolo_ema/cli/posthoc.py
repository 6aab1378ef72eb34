"""Choose the horizon of the average after the training, from the checkpoints that a run left.

Examples:
    python tools/posthoc_ema.py plan CONFIG                                                 # before the training
    python tools/posthoc_ema.py fit work_dirs/run --horizon 2epochs 500 4% last:10epochs    # how well would it go?
    python tools/posthoc_ema.py build work_dirs/run --horizon 2epochs -o half.pth           # make it
    python tools/posthoc_ema.py sweep work_dirs/run CONFIG                                  # which one is best?
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Optional

from mmengine.config import Config
from tqdm import tqdm

from mmyolo_ema.checkpoint import load_all, read
from mmyolo_ema.checkpoint.weights import averaged_weights, first_names, single_precision_bytes
from mmyolo_ema.cli.arguments import OneLineParser, add_cfg_options, add_command, add_run_flags, check_new, count
from mmyolo_ema.cli.config import build_model, read_config, read_plan
from mmyolo_ema.cli.ending import stop
from mmyolo_ema.cli.posthoc_picture import draw_horizons
from mmyolo_ema.cli.posthoc_tables import (
    coefficients_table,
    fit_table,
    percent,
    plan_table,
    remarks_on_ramp,
    sweep_table,
    verdict,
)
from mmyolo_ema.cli.tables import show
from mmyolo_ema.ema_config import averages_by_name, hooks_named
from mmyolo_ema.files import replace
from mmyolo_ema.posthoc.batch_norm import reestimate
from mmyolo_ema.posthoc.evaluation import Evaluation
from mmyolo_ema.posthoc.plan import advice, as_configured
from mmyolo_ema.posthoc.reconstruction import MOST_ERROR, USUAL_ERROR, reconstruct_named, write
from mmyolo_ema.posthoc.snapshots import StoredRun, read_run
from mmyolo_ema.posthoc.sweep import Sweep
from mmyolo_ema.posthoc.targets import FACTORS, horizons, target
from mmyolo_ema.printing import say
from mmyolo_ema.schedules import Schedule, rounded

ERROR = ('reconstruction error: how far the mixture of updates is from the wanted one, not an error of a metric. '
         f'Up to {USUAL_ERROR:.0%} is close; above {MOST_ERROR:.0%} no file is written.')
BY_NAME = ("The class of this average averages a tensor once for each of its names. So shared tensors followed another "
           "schedule, and set the error; ema_type='mmyolo_ema.ExpMomentumEMA' averages them once.")
BAR = partial(tqdm, disable=None, leave=False)
HORIZON = ("horizon 1 / momentum in updates, epochs or percent of the run: '500', '2epochs', '4%%'; or last:LENGTH, "
           'the plain mean of the last updates, triangle:LENGTH, power:DEVIATION')


def parse_args() -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    planned = add_command(commands, 'plan', 'tell what can be made of the checkpoints that a config will keep, and '
                          'what to keep for more', 'plan configs/demo/rtmdet_nuclei.py')
    planned.add_argument('config', help='config file of a training with an EMAHook')
    planned.add_argument('--horizon', nargs='+', metavar='H', help=HORIZON + ' (default: an eighth to eight times '
                         "the run's)")
    add_run_flags(planned)

    def add(name: str, help_text: str, example: str) -> argparse.ArgumentParser:
        command = add_command(commands, name, help_text, example)
        command.add_argument('work_dir', type=Path, metavar='WORK_DIR', help="folder with a run's checkpoints")
        return command

    fitted = add('fit', 'tell how well averages can be made of the checkpoints, without reading weights',
                 'fit work_dirs/run --horizon 2epochs 500 4% last:10epochs')
    fitted.add_argument('--horizon', nargs='+', metavar='H', help=HORIZON + ' (default: a quarter, half, twice and '
                        "four times the run's)")
    fitted.add_argument('--coefficients', action='store_true', help='show how they are made of the checkpoints')
    built = add('build', 'make averages of the checkpoints, and write each to a checkpoint of its own',
                'build work_dirs/run --horizon 2epochs -o half.pth')
    built.add_argument('--horizon', required=True, nargs='+', metavar='H', help=HORIZON)
    built.add_argument('-o', '--out', type=Path, required=True, nargs='+', help='file to write, .pth; one for each '
                       '--horizon')
    built.add_argument('--bn-batches', type=count, metavar='N', help='estimate the statistics of BatchNorm anew, on so '
                       'many training batches of --config (default: average them too)')
    built.add_argument('--config', help='config of the training, for --bn-batches')
    add_cfg_options(built)
    swept = add('sweep', 'validate averages of many horizons, and tell whether the best is better than the '
                "run's own", 'sweep work_dirs/run configs/demo/rtmdet_nuclei.py')
    swept.add_argument('config', help='config with the model and its validation')
    swept.add_argument('--horizons', nargs='+', metavar='H', help=HORIZON + " (default: an eighth to eight times the "
                       "run's, and then around the best)")
    swept.add_argument('--metric', help="metric to choose by (default: the config's save_best, or the first)")
    swept.add_argument('--resamples', type=count, default=1000, help='how often images are drawn anew to tell chance '
                       'from gain (default: 1000)')
    add_cfg_options(swept)
    args = parser.parse_args()
    if args.command == 'build':
        if len(args.out) != len(args.horizon):
            parser.error(f'-o names {len(args.out)} files for {len(args.horizon)} --horizon')
        if (args.bn_batches is None) is not (args.config is None):
            parser.error('--bn-batches and --config go together')
    return args


def plan(args: argparse.Namespace) -> None:
    cfg = read_config(args.config, args.cfg_options)
    planned = read_plan(cfg, args)
    if planned.place is None:
        stop(f'the config {args.config} has no EMAHook in custom_hooks (a list in a config replaces that of its base)')
    state = build_model(cfg).state_dict()
    size = single_precision_bytes(state)
    shared = set(Counter(first_names(state).values()).values()) if averages_by_name(planned.hook) else {1}
    wanted = [target(text, planned.schedule, planned.updates, planned.updates_per_epoch)
              for text in args.horizon or horizons_around(planned.schedule)]
    kept = [as_configured(cfg, planned, size)]
    has_snapshots = bool(hooks_named(cfg.get('custom_hooks'), 'SnapshotHook'))
    kept += [] if has_snapshots else advice(planned, size, USUAL_ERROR)
    kept = [each._replace(multiplicities=sorted(shared)) for each in kept]
    say(f'{planned.updates:,} updates, {planned.schedule}: {planned.origin}', '')
    show(plan_table(kept, wanted, planned.updates))
    say('', ERROR)
    say(*remarks_on_ramp(wanted, planned.updates))
    if shared != {1}:
        say(BY_NAME)
    if len(kept) > 1:
        say('To make averages from half to twice the horizon, add one of these to custom_hooks:')
    for each in kept[1:]:
        say(f"    dict(type='mmyolo_ema.SnapshotHook', {each.name.removeprefix('SnapshotHook ')})")


def fit(args: argparse.Namespace) -> None:
    stored = read_run(args.work_dir)
    print_run(stored)
    found = reconstruct_named(stored, args.horizon or horizons_around(stored.schedule, (0.25, 0.5, 2, 4)))
    show(fit_table(found))
    say('', ERROR, 'amplification: by how much rounding errors of the files grow.')
    say(*remarks_on_ramp([one.target for one in found], stored.updates))
    if args.coefficients:
        say('')
        show(coefficients_table(stored, found))


def horizons_around(schedule: Schedule, factors: Sequence[float] = FACTORS) -> list[str]:
    """Returns horizons around that of a schedule; stops if it has none."""
    found = horizons(schedule, factors)
    if not found:
        stop('name a --horizon: the average of this run has none')
    return found


def build(args: argparse.Namespace) -> None:
    for path in args.out:
        if path.suffix != '.pth':
            stop(f'-o must name .pth files, but got {path}')
        check_new(path, '-o')
    if len({path.resolve() for path in args.out}) < len(args.out):
        stop(f'-o names a file twice: {" ".join(map(str, args.out))}')
    cfg = read_config(args.config, args.cfg_options) if args.config else None
    stored = read_run(args.work_dir)
    print_run(stored)
    wanted = dict(zip(args.out, reconstruct_named(stored, args.horizon)))
    finish = None if cfg is None else partial(reestimate, cfg=cfg, batches=args.bn_batches, progress=BAR)
    remark = None if cfg is None else f'BatchNorm estimated anew on {args.bn_batches} training batches'
    write(stored, wanted, BAR, finish, remark)
    for path, one in wanted.items():
        worst = one.worst
        say(f'{path}  {one.target.name}: reconstruction error {worst.reconstruction_error:.2%}, amplification '
            f'{worst.amplification:.1f}, mean age {rounded(worst.mean_age)} updates' +
            (f', {remark}' if remark else ''))
        if worst.reconstruction_error > USUAL_ERROR:
            say(f'warning: a reconstruction error above {USUAL_ERROR:.0%} may cost accuracy; compare with the average '
                'of the run')
    say(*remarks_on_ramp([one.target for one in wanted.values()], stored.updates))


def sweep(args: argparse.Namespace) -> None:
    cfg = read_config(args.config, args.cfg_options)
    text = validation_text(cfg)  # now, because models write into their configs when they are built
    out = {suffix: args.work_dir / f'posthoc_sweep.{suffix}' for suffix in ('json', 'png')}
    best = args.work_dir / 'best_posthoc.pth'
    if best.exists() and not out['json'].exists():
        stop(f'{best} exists, but {out["json"]} does not: move it away')
    stored = read_run(args.work_dir)
    print_run(stored)
    texts = args.horizons or horizons_around(stored.schedule)
    wanted = reconstruct_named(stored, texts)
    load_all(averaged_weights(read(stored.files[-1].path, mmap=True)), build_model(cfg))
    with tqdm(disable=None, leave=False, unit='batch') as bar:
        evaluation = Evaluation(cfg, args.work_dir / 'posthoc_sweep', bar.update)
        if not evaluation.is_coco:
            say("Whether the best is better by more than chance will not be told: that is for COCO's mAP only, and "
                f'the evaluator is {evaluation.evaluator}.', '')
        running = Sweep(stored, evaluation, out['json'], text, *metric_of(cfg, args.metric))
        # Both kinds of stored weights, the horizons, and at most four around the best.
        bar.reset((2 + len(texts) + 4) * evaluation.batches)
        running.measure_stored()
        running.measure(wanted, BAR)
        running.refine(BAR)
        running.add_earlier()
    compared = running.compare(args.resamples, partial(tqdm, disable=None, leave=False, desc='drawing images'))
    running.finish(compared)
    show(sweep_table(running))
    for name, error in running.dropped.items():
        say(f'left out: {name}, whose reconstruction error would be {percent(error)}')
    replace(out['png'], partial(draw_horizons, running.curve()))
    write_best(running, best)
    say('', *verdict(running, compared))
    say(f'{best}, {out["png"]}, {out["json"]}')


def metric_of(cfg: Config, named: Optional[str]) -> tuple[Optional[str], bool]:
    """Returns the metric to choose by, None for the usual one, and whether less of it is better."""
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    wanted, rule = (value[0] if isinstance(value, list) and value else value
                    for value in (hook.get('save_best'), hook.get('rule')))
    # The raw weights' metrics of a training are measured by the name of the average's here.
    configured = wanted.removesuffix('_origin') if isinstance(wanted, str) and wanted != 'auto' else None
    metric = named or configured
    if rule is not None and metric == configured:
        return metric, rule == 'less'
    # As MMEngine tells where it is not told.
    return metric, 'loss' in (metric or '').lower()


def validation_text(cfg: Config) -> str:
    """Returns what a validation depends on."""
    return repr({part: cfg.get(part) for part in ('model', 'data_preprocessor', 'val_dataloader', 'val_evaluator',
                                             'val_cfg')})


def write_best(running: Sweep, path: Path) -> None:
    """Writes the best average, in the place of that of an earlier sweep."""
    if path.exists():
        say(f'{path} is written anew')
    write(running.run, {path: running.best_reconstruction}, BAR, replaces=True)


def print_run(stored: StoredRun) -> None:
    epoch = f', {rounded(stored.updates_per_epoch)} in an epoch' if stored.updates_per_epoch else ''
    say(f'{len(stored.files)} checkpoints of updates {stored.files[0].updates:,} to {stored.updates:,}{epoch}, '
        f'{stored.schedule}')
    if stored.left_out:
        say('not used: ' + ', '.join(f'{path.name} ({why})' for path, why in stored.left_out.items()))
    if not stored.once and stored.multiplicities != [1]:
        say(BY_NAME)
    say('')


COMMANDS = dict(plan=plan, fit=fit, build=build, sweep=sweep)


def main() -> None:
    args = parse_args()
    try:
        COMMANDS[args.command](args)
    except BrokenPipeError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        stop(error)
