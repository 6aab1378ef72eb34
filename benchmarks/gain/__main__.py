"""Measure what an average gains: mAP of averaged weights and of the raw ones of the same trainings, over seeds.

Trains the demo's detector on the demo's nuclei and on canvases of scikit-learn's digits, with the demo's learning rate,
which decays, and with a flat one: 40 minutes on 2 cores. A training that is finished is not repeated: the same command
goes on where it was stopped, and several at a time, of different seeds, share a folder.

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
from typing import Any

import mmyolo_ema  # noqa: F401  first, because it says what an environment lacks

# isort: split
from tqdm import tqdm

from benchmarks.gain.digits import write_digits
from benchmarks.gain.results import draw_gains, gain_table, shared_table
from benchmarks.gain.training import DATA, POINTS, RATES, Case, train
from benchmarks.report import environment
from mmyolo_ema.cli.arguments import OneLineParser, check_writable, count
from mmyolo_ema.cli.ending import stop
from mmyolo_ema.cli.tables import show
from mmyolo_ema.files import replace, write_new


def parse_args() -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument('--seeds', nargs='+', type=int, default=range(8), help='default: 0 to 7')
    parser.add_argument('--data', nargs='+', choices=DATA, default=DATA, help='default: both')
    parser.add_argument('--epochs', type=epochs, default=24, help='a multiple of 4 (default: 24, of 20 updates)')
    parser.add_argument('--work-dir', type=Path, default=Path('work_dirs') / 'gain',
                        help='for the picture, and a file for each training (default: work_dirs/gain)')
    return parser.parse_args()


def epochs(text: str) -> int:
    number = count(text)
    if number % POINTS:
        raise argparse.ArgumentTypeError(f'must be a multiple of {POINTS}, but got {number}')
    return number


def finished(files: dict[Path, Case], length: int) -> dict[Path, dict[str, Any]]:
    """Returns what the files hold that are there; stops if one is of a training of another length."""
    runs = {file: json.loads(file.read_text()) for file in files if file.exists()}
    for file, run in runs.items():
        if run['epochs'] != length:
            stop(f'{file} is of a training of {run["epochs"]} epochs, not {length}: name another --work-dir')
    return runs


def measure(files: dict[Path, Case], length: int) -> None:
    """Trains the cases, and writes a file for each."""
    with tempfile.TemporaryDirectory() as folder, tqdm(total=20 * length * len(files), disable=None) as bar:
        if any(case.data == 'digits' for case in files.values()):
            write_digits(Path(folder) / 'digits')
        for file, case in files.items():
            results = train(case, length, Path(folder), bar.update)
            content = json.dumps(dict(case._asdict(), epochs=length, **results, **environment('cpu')))
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
        done = finished(files, args.epochs)
        measure({file: case for file, case in files.items() if file not in done}, args.epochs)
        runs = [*finished(files, args.epochs).values()]
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
