"""Create the environment that `make demo` and `make test` run in.

Usage: python3 create.py onedl .venv

Says in one line each what it does and about how long that takes on 2 cores,
and stops at the first failure with the reason. Running it again repairs or
updates an environment.
"""

import argparse
import fcntl
import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# setuptools 81 dropped pkg_resources, which mmcv 2.1.0 needs to build.
BUILD_TOOLS = ['setuptools<81', 'wheel', 'ninja', 'psutil', 'packaging', 'numpy']


def say(step: int, what: str, duration: str) -> None:
    print(f'[{step}/5] {what} ({duration})', flush=True)


def call(*command: object) -> str:
    """Runs a command and returns its standard output; stops with the end of its errors if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, errors='replace')
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        shown = ' '.join(str(part) for part in command[:6])
        sys.exit('\n'.join(lines[-25:]) + f'\nset-up stopped at: {shown} ...')
    return done.stdout


def requirement(lines: list, package: str) -> str:
    """Returns the line of a requirements file that pins a package of either family."""
    return next(line for line in lines if re.match(rf'(onedl-)?{package}==', line))


def create(stack: str, folder: Path) -> None:
    """Installs a stack, this package and its tests' needs into a virtual environment."""
    pins = HERE / f'{stack}.txt'
    lines = pins.read_text().splitlines()
    python = folder / 'bin' / 'python'
    pip = [python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']

    version = f'Python {sys.version_info[0]}.{sys.version_info[1]}'
    say(1, f'{version} in {folder.name}', '5 s')
    if not has_pip(python, version):
        call(sys.executable, '-m', 'venv', '--clear', folder)

    torch = requirement(lines, 'torch')
    say(2, f'{torch}, which the ops are built against', '30 s and its download')
    call(*pip, torch, *BUILD_TOOLS)

    mmcv = requirement(lines, 'mmcv')
    say(3, f'{mmcv} with compiled ops', '5 s if built before, else 4 minutes')
    wheel = compiled_wheel(python, mmcv)
    call(*pip, wheel)

    rest = f'{requirement(lines, "mmengine")}, {requirement(lines, "mmdet(ection)?")}'
    say(4, f'{rest}, mmyolo_ema and what its tests need', '1 minute')
    call(*pip, '-r', pins, '-e', f'{ROOT}[test]')
    # Without what they depend on: timm would bring torchvision, which does not work beside a CPU build of torch.
    call(*pip, '--no-deps', '-r', HERE / 'peers.txt')

    say(5, 'check that one family is there and its ops run', '10 s')
    print(call(python, HERE / 'verify.py'), end='')


def has_pip(python: Path, version: str) -> bool:
    """Whether an environment is whole, after an interruption, and of this version of Python."""
    if not python.exists():
        return False
    asked = subprocess.run([str(python), '-m', 'pip', '--version'], capture_output=True, text=True)
    return asked.returncode == 0 and f'({version.lower()})' in asked.stdout


def compiled_wheel(python: Path, mmcv: str) -> str:
    """Returns the path of mmcv's wheel; what the build says about itself is shown as it comes."""
    done = subprocess.run([str(python), str(HERE / 'build_mmcv.py'), mmcv], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit('set-up stopped at the ops of mmcv.')
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('stack', choices=['onedl', 'openmmlab'])
    parser.add_argument('folder', type=Path)
    args = parser.parse_args()
    if sys.version_info < (3, 10):
        sys.exit(f'Python {sys.version.split()[0]} is too old: 3.10 or newer is needed. '
                 'Name another with make PYTHON=python3.12.')
    # Two makes at once would write to one environment: the second waits.
    fcntl.flock(os.open(ROOT, os.O_RDONLY), fcntl.LOCK_EX)
    create(args.stack, args.folder.resolve())
    # The package is installed from where it is: make checks the path, in case the folder has moved.
    (args.folder / 'ready').write_text(f'{ROOT}\n')


if __name__ == '__main__':
    main()
