"""Choose the horizon of the average after the training, from the checkpoints that a run left.

Examples:
    python tools/posthoc_ema.py fit work_dirs/run --horizon 2epochs 500 4% last:10epochs
    python tools/posthoc_ema.py build work_dirs/run --horizon 2epochs -o half.pth
"""

import argparse
from functools import partial
from pathlib import Path

import mmyolo_ema  # noqa: F401  first, because it says what an environment lacks

# isort: split
from rich.table import Table
from tqdm import tqdm

from mmyolo_ema.command_line import OneLineParser, add_command, check_new, run, show, stop
from mmyolo_ema.posthoc.reconstruction import MOST_ERROR, USUAL_ERROR, Reconstruction, reconstruct, write
from mmyolo_ema.posthoc.snapshots import StoredRun, read_run
from mmyolo_ema.posthoc.targets import target
from mmyolo_ema.schedule_report import rounded

HORIZON = ("horizon 1 / momentum in updates, epochs or percent of the run: '500', '2epochs', '4%%'; or last:LENGTH, "
           'the plain mean of the last updates, triangle:LENGTH, power:SPREAD')


def parse_args() -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')

    def add(name: str, help_text: str, example: str) -> argparse.ArgumentParser:
        command = add_command(commands, name, help_text, example)
        command.add_argument('work_dir', type=Path, metavar='WORK_DIR', help="folder with a run's checkpoints")
        return command

    fitted = add('fit', 'tell how well averages can be made of the checkpoints, without reading weights',
                 'fit work_dirs/run --horizon 2epochs 500 4% last:10epochs')
    fitted.add_argument('--horizon', nargs='+', metavar='H', help=HORIZON + ' (default: a quarter, half, twice and '
                        "four times the run's)")
    built = add('build', 'make an average of the checkpoints, and write it to a checkpoint of its own',
                'build work_dirs/run --horizon 2epochs -o half.pth')
    built.add_argument('--horizon', required=True, metavar='H', help=HORIZON)
    built.add_argument('-o', '--out', type=Path, required=True, help='file to write: .pth')
    return parser.parse_args()


def reconstructions(stored: StoredRun, texts: list[str]) -> list[Reconstruction]:
    return [reconstruct(stored, target(text, stored.schedule, stored.updates, stored.updates_per_epoch))
            for text in texts]


def fit(args: argparse.Namespace) -> None:
    stored = read_run(args.work_dir)
    print_run(stored)
    found = reconstructions(stored, args.horizon or usual_horizons(stored))
    table = Table('average', 'error', 'rounding', 'mean age', 'wanted', 'snapshots', title='What can be made of them')
    for column in table.columns[1:]:
        column.justify = 'right'
    for one in found:
        worst = one.worst
        table.add_row(one.target.name, f'{worst.error:.2%}', f'{worst.rounding:.1f}', rounded(worst.mean_age),
                      rounded(worst.wanted_age), str(int((worst.coefficients != 0).sum())))
    show(table)
    print(f'\nerror: what the weights of the updates lack, relative to the wanted ones. Up to {USUAL_ERROR:.0%} is '
          f'close; above {MOST_ERROR:.0%} no file is written.\n'
          'rounding: by how much rounding errors of the files grow.\n')
    show(coefficients_table(stored, found))


def coefficients_table(stored: StoredRun, found: list[Reconstruction]) -> Table:
    table = Table('file', 'weights', 'updates', *(one.target.name for one in found), title='Coefficients')
    for column in table.columns[2:]:
        column.justify = 'right'
    for index, (file, kind) in enumerate(stored.sources):
        table.add_row(file.path.name, kind, f'{file.updates:,}', *(f'{one.worst.coefficients[index]:.4g}'
                                                                  for one in found))
    return table


def usual_horizons(stored: StoredRun) -> list[str]:
    momentum = getattr(stored.schedule, 'momentum', None)
    if momentum is None:
        raise ValueError('name a --horizon: the average of this run has none')
    return [f'{factor / momentum:.6g}' for factor in (0.25, 0.5, 2, 4)]


def build(args: argparse.Namespace) -> None:
    if args.out.suffix != '.pth':
        stop(f'-o must name a .pth file, but got {args.out}')
    check_new(args.out, '-o')
    stored = read_run(args.work_dir)
    print_run(stored)
    one, = reconstructions(stored, [args.horizon])
    write(stored, {args.out: one}, partial(tqdm, disable=None, leave=False))
    worst = one.worst
    print(f'{args.out}  {args.horizon}: error {worst.error:.2%}, rounding {worst.rounding:.1f}, mean age '
          f'{rounded(worst.mean_age)} updates')
    if worst.error > USUAL_ERROR:
        print(f'warning: an error above {USUAL_ERROR:.0%} may cost accuracy; compare with the average of the run')


def print_run(stored: StoredRun) -> None:
    epoch = f', {rounded(stored.updates_per_epoch)} in an epoch' if stored.updates_per_epoch else ''
    print(f'{len(stored.files)} checkpoints of updates {stored.files[0].updates:,} to {stored.updates:,}{epoch}, '
          f'{stored.schedule}')
    if stored.left_out:
        print('left out, without an average of their own: ' + ', '.join(path.name for path in stored.left_out))
    print()


COMMANDS = dict(fit=fit, build=build)


def main() -> None:
    args = parse_args()
    try:
        COMMANDS[args.command](args)
    except BrokenPipeError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        stop(error)


if __name__ == '__main__':
    run(main)
