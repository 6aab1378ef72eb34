"""Prove and measure everything on a GPU in one command: set-up, tests, a step, the hook in a training, the demo.

The most important comes first, and each part's result is written as soon as it is there. Where there is no GPU, all
parts run on the CPU at a size that takes a minute or two.

Example:
    make gpu-check
    make gpu-check TORCH=installed WHEELS=wheels       # without a network
    python tools/gpu_check.py --chapter gpu_check.json    # write its numbers to docs/performance.md
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Optional

ROOT = Path(__file__).resolve().parent.parent
DEMO_CONFIG = 'configs/demo/rtmdet_nuclei.py'
# Of what a part prints.
LAST_LINES = 15


class Part(NamedTuple):
    """A part of the check.

    Attributes:
        arguments: Of Python.
        seconds: After which it is ended.
        results: The JSON file that it writes, if it writes one.
    """

    arguments: list[str]
    seconds: int
    results: Optional[Path] = None


def parts(folder: Path, gpu: bool) -> dict[str, Part]:
    """Returns what is run, in this order; on a CPU each at the size of a toy."""
    benchmark = ['tools/benchmark_ema.py', '--device', 'cuda' if gpu else 'cpu']
    if gpu:
        step = ['--models', 'rtmdet-tiny', 'rtmdet-l', 'faster-rcnn-r50', '--rounds', '20']
        hook = ['--models', 'rtmdet-tiny', 'rtmdet-l', '--seconds', '25']
        demo = []
    else:
        step = ['--models', DEMO_CONFIG, '--rounds', '1']
        hook = ['--models', DEMO_CONFIG, '--batch-sizes', '1', '--image-size', '64', '--seconds', '0']
        demo = ['--cfg-options', 'train_cfg.max_epochs=6']
    files = {name: folder / f'{name}.json' for name in ('step', 'hook')}
    return {
        'tests': Part(['-m', 'pytest', 'tests', '-m', 'gpu', '-q', '-p', 'no:cacheprovider'], 180),
        'step': Part([*benchmark, *step, '--json', str(files['step'])], 150, files['step']),
        'hook': Part([*benchmark, '--hook', *hook, '--json', str(files['hook'])], 240, files['hook']),
        'demo': Part(['tools/demo.py', *demo], 180),
    }


def run_part(python: Path, part: Part, gpu: bool) -> dict[str, Any]:
    """Runs a part in a process of its own and returns how it ended, how long it took and what it found."""
    environment = os.environ if gpu else dict(os.environ, CUDA_VISIBLE_DEVICES='', OMP_NUM_THREADS='1')
    start = time.perf_counter()
    process = subprocess.Popen(
        [str(python), *part.arguments],
        cwd=ROOT,
        env=environment,
        text=True,
        errors='replace',
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        said = process.communicate(timeout=part.seconds)[0]
        ended = 'ok' if process.returncode == 0 else f'failed with status {process.returncode}'
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        said, ended = process.communicate()[0], f'ended after {part.seconds} s'
    result = dict(ended=ended, seconds=round(time.perf_counter() - start, 1), said=said.splitlines()[-LAST_LINES:])
    if part.results is not None and part.results.exists():
        result['results'] = json.loads(part.results.read_text())
    return result


def write(path: Path, text: str) -> None:
    """Writes a file whole, or leaves what was there before."""
    temporary = path.with_name(f'.{path.name}.unfinished')
    temporary.write_text(text)
    temporary.replace(path)


def machine(python: Path) -> dict[str, Any]:
    """Returns what the numbers depend on; ``card`` is empty where torch sees no GPU."""
    program = (
        'import json, torch; gpu = torch.cuda.is_available()\n'
        'print(json.dumps(dict(card=torch.cuda.get_device_name() if gpu else "", torch=torch.__version__)))'
    )
    host = json.loads(subprocess.check_output([str(python), '-c', program], text=True))
    driver = ''
    if host['card']:
        driver = subprocess.check_output(
            ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader'], text=True
        ).splitlines()[0]
    return dict(host, driver=driver, cores=os.cpu_count(), date=time.strftime('%Y-%m-%d'))


def set_up(args: argparse.Namespace, device: str) -> bool:
    """Makes the environment, or puts other operators into it; returns whether that worked."""
    command = [
        sys.executable,
        ROOT / 'tools' / 'environment' / 'create.py',
        args.stack,
        args.folder,
        '--device',
        device,
        '--torch',
        args.torch,
        *(['--wheels', args.wheels] if args.wheels else []),
    ]
    return subprocess.run(command, cwd=ROOT).returncode == 0


def has_cuda_operators(args: argparse.Namespace) -> bool:
    """Whether mmcv in the environment has operators for a GPU."""
    return (ROOT / args.folder / 'ready').read_text().strip().endswith(' cuda')


def check(args: argparse.Namespace) -> None:
    """Runs all parts and writes their results."""
    folder = ROOT / 'work_dirs' / f'gpu_check-{time.strftime("%Y%m%d_%H%M%S")}'
    folder.mkdir(parents=True)
    start = time.perf_counter()
    if not set_up(args, 'cpu' if args.device == 'cpu' else 'quick'):
        sys.exit(1)
    python = (ROOT / args.folder / 'bin' / 'python').absolute()
    host = machine(python)
    gpu = bool(host['card']) and args.device != 'cpu'
    if args.device == 'cuda' and not gpu:
        sys.exit(f'DEVICE=cuda: torch {host["torch"]} sees no NVIDIA GPU here.')
    set_up_seconds = round(time.perf_counter() - start, 1)
    content: dict[str, Any] = dict(host, card=host['card'] if gpu else '', set_up_seconds=set_up_seconds, parts={})
    print(f'device: {content["card"] or "the CPU, at the size of a toy"}', flush=True)
    for name, part in parts(folder, gpu).items():
        # Compiling them takes minutes, and only the demo needs them.
        if name == 'demo' and gpu and not (has_cuda_operators(args) or set_up(args, 'cuda')):
            result: dict[str, Any] = dict(ended='left out: mmcv has no working CUDA operators', seconds=0, said=[])
        else:
            result = run_part(python, part, gpu)
        content['parts'][name] = result
        content['seconds'] = round(time.perf_counter() - start, 1)
        write(folder / 'gpu_check.json', json.dumps(content, indent=1))
        print(
            f'{name}: {result["ended"]} in {result["seconds"]} s; {result["said"][-1] if result["said"] else ""}',
            flush=True,
        )
        if result['ended'] != 'ok':
            print('\n'.join(result['said']), flush=True)
    print(f'{folder / "gpu_check.json"}  the numbers, after {content["seconds"]:.0f} s')
    if any(result['ended'] != 'ok' for result in content['parts'].values()):
        sys.exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('stack', nargs='?', choices=['onedl', 'openmmlab'], default='onedl')
    parser.add_argument('folder', nargs='?', default='.venv', help='of the environment')
    parser.add_argument('--device', choices=['auto', 'cpu', 'cuda'], default='auto')
    parser.add_argument('--torch', choices=['pinned', 'installed'], default='pinned')
    parser.add_argument('--wheels', help='folder that everything is installed from')
    parser.add_argument(
        '--chapter',
        type=Path,
        metavar='F.json',
        help='write the chapter of docs/performance.md from the numbers of an earlier check',
    )
    args = parser.parse_args()
    if args.chapter is None:
        check(args)
    else:
        from gpu_chapter import with_chapter

        page = ROOT / 'docs' / 'performance.md'
        try:
            write(page, with_chapter(page.read_text(), json.loads(args.chapter.read_text())))
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f'error: {args.chapter} holds no numbers for the chapter: {error}', file=sys.stderr)
            sys.exit(2)


if __name__ == '__main__':
    main()
