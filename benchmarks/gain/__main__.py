"""Measure what an average gains: mAP of averaged weights and of the raw ones of the same trainings, over seeds.

Trains the demo's detector on the demo's nuclei and on canvases of scikit-learn's digits, with the demo's learning rate,
which decays, and with a flat one: half an hour on two quiet cores. A training that is finished is not repeated: the
same command goes on where it was stopped, and several at a time, of different seeds, share a folder.

Example:
    python -m benchmarks.gain
    python -m benchmarks.gain --data nuclei --seeds 0 1
"""

import argparse
import itertools
import json
import tempfile
from functools import partial
from pathlib import Path

import mmyolo_ema.registry  # noqa: F401  first, because it says what an environment lacks

# isort: split
from benchmarks.gain.digits import write_digits
from benchmarks.gain.results import draw_gains, gain_table, shared_table
from benchmarks.gain.training import DATA, RATES, UPDATES, Case, train
from benchmarks.report import environment
from mmyolo_ema.cli.arguments import OneLineParser, check_writable
from mmyolo_ema.cli.ending import stop
from mmyolo_ema.cli.progress import Bar
from mmyolo_ema.cli.tables import show
from mmyolo_ema.files import replace, write_new


def parse_args() -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument('--seeds', nargs='+', type=int, default=range(8), help='default: 0 to 7')
    parser.add_argument('--data', nargs='+', choices=DATA, default=DATA, help='default: both')
    parser.add_argument(
        '--work-dir',
        type=Path,
        default=Path('work_dirs') / 'gain',
        help='for the picture, and a file for each training (default: work_dirs/gain)',
    )
    return parser.parse_args()


def measure(files: dict[Path, Case]) -> None:
    """Trains the cases, and writes a file for each."""
    with tempfile.TemporaryDirectory() as folder, Bar(total=UPDATES * len(files)) as bar:
        if any(case.data == 'digits' for case in files.values()):
            write_digits(Path(folder) / 'digits')
        for file, case in files.items():
            content = json.dumps(dict(case._asdict(), **train(case, Path(folder), bar.update), **environment('cpu')))
            write_new(file, partial(Path.write_text, data=content))
            bar.write(f'{file} is finished')


def main() -> None:
    args = parse_args()
    check_writable(args.work_dir, '--work-dir')
    # A seed after the other: what is there when it is stopped is of use.
    cases = [Case(data, rate, seed) for seed, data, rate in itertools.product(args.seeds, args.data, RATES)]
    files = {args.work_dir / f'{case.data}-{case.rate}-{case.seed}.json': case for case in cases}
    picture = args.work_dir / 'gain.png'
    try:
        measure({file: case for file, case in files.items() if not file.exists()})
        runs = [json.loads(file.read_text()) for file in files]
        replace(picture, lambda path: draw_gains(runs, path))
    except ImportError as error:
        stop(f'{error.name} is not installed: pip install {error.name}' if error.name else error)
    except (RuntimeError, OSError) as error:
        stop(error)
    print(f'{picture}  the picture')
    for table in (gain_table(runs), shared_table(runs)):
        show(table)


if __name__ == '__main__':
    main()
