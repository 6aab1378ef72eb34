"""Measure what an average costs, beside other packages' classes and the limit that the memory sets.

First checks that all of them compute the same average. Prints tables, and writes the numbers and a picture.

Example:
    python -m benchmarks                                    # a step on four detectors, 5 minutes on 2 cores
    python -m benchmarks --models rtmdet-tiny my_config.py --rounds 20
    python -m benchmarks --averages --models rtmdet-l       # several averages, and one in float32 of bfloat16 weights
    python -m benchmarks --scale                            # by number of tensors, and of weights
    python -m benchmarks --training-step --device cuda      # a training step, with and without an average
    python -m benchmarks --hook --device cuda               # what hooks add to steps of MMEngine's runner
    python -m benchmarks --sharing --models faster-rcnn-r50 # an average shared out among 1, 2 and 3 processes
    python -m benchmarks --training-run --rounds 3          # the demo's whole training
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Optional

import mmyolo_ema.registry  # noqa: F401  first, because it says what an environment lacks

# isort: split
import torch
from rich.table import Table

from benchmarks import report
from benchmarks.agreement import check_agreement
from benchmarks.averages import measure_averages
from benchmarks.detectors import DETECTORS, build_detector
from benchmarks.hook_cost import measure_hook_cost
from benchmarks.pictures import Growth, StepTimes, draw_growth, draw_sharing, draw_step_times
from benchmarks.scale import SIZES, fits, measure_scale
from benchmarks.sharing import PROCESSES, measure_sharing
from benchmarks.steps import LIMIT, measure_steps
from benchmarks.timing import Timing
from benchmarks.training import measure_runs, measure_training_step
from mmyolo_ema.cli.arguments import OneLineParser, check_new, check_writable, count
from mmyolo_ema.cli.ending import stop
from mmyolo_ema.cli.progress import Bar
from mmyolo_ema.cli.tables import show
from mmyolo_ema.files import write_new

ROOT = Path(__file__).resolve().parent.parent


class Results(NamedTuple):
    """What was measured: for the file, for the terminal, and for a picture."""

    numbers: object
    tables: list[Table]
    draw: Optional[Callable[[Path], None]] = None


def parse_args() -> argparse.Namespace:
    parser = OneLineParser(__doc__)
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu', help='where to measure (default: cpu)')
    parser.add_argument(
        '--models',
        nargs='+',
        metavar='MODEL',
        default=list(DETECTORS),
        help=f'detectors: {", ".join(DETECTORS)}, or configs (default: these four)',
    )
    parser.add_argument(
        '--rounds',
        type=count,
        help='how often each is measured (default: 100 steps, 10 training steps, 3 training runs)',
    )
    parser.add_argument(
        '--batch-sizes',
        nargs='+',
        type=count,
        metavar='N',
        default=[8, 32],
        help='images in a training step, for --hook (default: 8 32)',
    )
    parser.add_argument('--image-size', type=count, default=640, help='pixels, for --hook (default: 640)')
    parser.add_argument(
        '--seconds',
        type=float,
        default=40,
        help='how long to train for each model and batch size, for --hook (default: 40)',
    )
    parser.add_argument(
        '--json',
        type=Path,
        metavar='F.json',
        help='write the numbers to this file, and the picture beside it (default: in work_dirs/)',
    )
    what = parser.add_mutually_exclusive_group()
    for mode, help_text in {
        'scale': 'how a step grows with the number of tensors and of weights',
        'averages': 'steps of several averages of one model, and of one in another dtype',
        'training-step': 'what an update adds to a training step of the first of the models',
        'hook': 'what hooks add to the steps of a training of the models',
        'sharing': 'an average that processes on the CPU share out',
        'training-run': "what the hook adds to the demo's whole training",
    }.items():
        what.add_argument(f'--{mode}', dest='mode', action='store_const', const=mode, help=f'measure {help_text}')
    what.set_defaults(mode='steps')
    return parser.parse_args()


def check_files(numbers: Path, picture: Path) -> None:
    """Stops if the results could not be written at the end, minutes from now."""
    if numbers.suffix != '.json':
        stop(f'--json must name a .json file, but got {numbers}')
    for path in (numbers, picture):
        check_new(path, '--json')
    check_writable(numbers, '--json')


def build_detectors(names: list[str]) -> dict[str, torch.nn.Module]:
    """Returns the detectors by name; stops if one cannot be built."""
    detectors = {}
    for name in names:
        try:
            detectors[name] = build_detector(name)
        except (Exception, SystemExit) as error:  # a config is a program, so anything can go wrong in it
            stop(f'{name} cannot be built: {error}')
    return detectors


def benchmark_steps(args: argparse.Namespace) -> Results:
    cases = [
        (name, detector, update_buffers)
        for name, detector in build_detectors(args.models).items()
        for update_buffers in (True, False)
    ]
    costs = [
        measure_steps(name, detector, update_buffers, args.rounds or 100, args.device)
        for name, detector, update_buffers in progress(cases)
    ]
    panels = [
        StepTimes(
            f'{cost.detector}\nupdate_buffers={cost.update_buffers}',
            {name: quartiles_ms(of_class.step) for name, of_class in cost.costs.items() if name != LIMIT},
            cost.costs[LIMIT].step.median * 1e3,
        )
        for cost in costs
    ]
    tables = [report.step_table(cost) for cost in costs]
    tables += [report.surroundings_table(cost) for cost in costs if cost.update_buffers]
    return Results(costs, tables, partial(draw_step_times, panels))


def benchmark_averages(args: argparse.Namespace) -> Results:
    costs = [
        measure_averages(name, detector, args.rounds or 100, args.device)
        for name, detector in progress([*build_detectors(args.models).items()])
    ]
    return Results(costs, [report.averages_table(cost) for cost in costs])


def benchmark_scale(args: argparse.Namespace) -> Results:
    growth = {}
    for what, sizes in SIZES.items():
        fitting = [size for size in sizes if fits(size[1], args.device)]
        growth[what] = [
            measure_scale(tensors, weights, args.rounds or 100, args.device) for tensors, weights in progress(fitting)
        ]
        for _, weights in sizes[len(fitting) :]:
            print(f'left out for want of memory: {weights // 10**6:,} million weights')
    panels = [
        Growth(
            f'{what} of the model',
            [getattr(point, what) for point in points],
            {name: [point.steps[name].median * 1e3 for point in points] for name in points[0].steps},
        )
        for what, points in growth.items()
    ]
    return Results(growth, [report.scale_table(*measured) for measured in growth.items()], partial(draw_growth, panels))


def benchmark_training_step(args: argparse.Namespace) -> Results:
    detector = build_detectors(args.models[:1])[args.models[0]]
    cost = measure_training_step(detector, args.rounds or 10, args.device)
    return Results(cost, [report.training_step_table(cost)])


def benchmark_hook(args: argparse.Namespace) -> Results:
    cases = [(name, size) for name in args.models for size in args.batch_sizes]
    costs = [
        measure_hook_cost(name, build_detectors([name])[name], size, args.image_size, args.seconds, args.device)
        for name, size in progress(cases)
    ]
    return Results(costs, [report.hook_table(costs)])


def benchmark_sharing(args: argparse.Namespace) -> Results:
    if args.device != 'cpu':
        stop('--sharing measures processes on the CPU: leave --device out')
    cases = [
        (name, detector, processes)
        for name, detector in build_detectors(args.models).items()
        for processes in PROCESSES
    ]
    costs = [
        measure_sharing(name, detector, processes, args.rounds or 100) for name, detector, processes in progress(cases)
    ]
    return Results(costs, [report.sharing_table(costs)], partial(draw_sharing, costs))


def benchmark_training_run(args: argparse.Namespace) -> Results:
    with tempfile.TemporaryDirectory() as folder:
        train = [
            sys.executable,
            str(ROOT / 'tools' / 'train.py'),
            str(ROOT / 'configs' / 'demo' / 'rtmdet_nuclei.py'),
            '--work-dir',
            folder,
        ]
        commands = {'with the hook': train, 'without it': [*train, '--cfg-options', 'custom_hooks=[]']}
        costs = measure_runs(commands, args.rounds or 3)
    return Results(costs, [report.run_table(costs)])


def progress(cases: list[Any]) -> Iterable[Any]:
    return Bar(cases)


def quartiles_ms(timing: Timing) -> tuple[float, float, float]:
    return timing.lower * 1e3, timing.median * 1e3, timing.upper * 1e3


def plain(results: Any) -> Any:
    """Returns what json can write."""
    if is_dataclass(results) and not isinstance(results, type):
        return asdict(results)
    if isinstance(results, dict):
        return {name: plain(value) for name, value in results.items()}
    return [plain(value) for value in results]


def main() -> None:
    args = parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        stop('--device cuda: torch finds no GPU here')
    numbers = args.json or Path('work_dirs') / f'benchmark_ema-{time.strftime("%Y%m%d_%H%M%S")}' / f'{args.mode}.json'
    picture = numbers.with_suffix('.png')
    check_files(numbers, picture)
    try:
        differences = check_agreement(args.device)
        print(f'They compute the same average, within {max(differences.values()):.1g}: {", ".join(differences)}')
        results = MODES[args.mode](args)
        content = dict(measured=args.mode, **report.environment(args.device), results=plain(results.numbers))
        write_new(numbers, lambda path: path.write_text(json.dumps(content, indent=2)))
        print(f'{numbers}  the numbers')
        if results.draw is not None:
            write_new(picture, results.draw)
            print(f'{picture}  the picture')
    except ImportError as error:
        stop(f'{error.name} is not installed: pip install {error.name}' if error.name else error)
    except (RuntimeError, OSError) as error:
        stop(error)
    # After the files, which a reader that closes the pipe must not cost.
    for table in results.tables:
        show(table)


MODES = {
    'steps': benchmark_steps,
    'averages': benchmark_averages,
    'scale': benchmark_scale,
    'training-step': benchmark_training_step,
    'hook': benchmark_hook,
    'sharing': benchmark_sharing,
    'training-run': benchmark_training_run,
}

if __name__ == '__main__':
    main()
