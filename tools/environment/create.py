"""Create the environment that the commands of the Makefile run in.

Usage: python3 create.py onedl .venv

Says in one line each what it does and about how long that takes on 2 cores,
and stops at the first failure with the reason. Running it again repairs or
updates an environment.
"""

import argparse
import fcntl
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# mmcv 2.3.6 names its licence as setuptools 77 and later read it; mmcv 2.1.0 needs pkg_resources, which 81 dropped.
BUILD_TOOLS = ['setuptools>=77,<81', 'wheel', 'ninja', 'psutil', 'packaging', 'numpy']


def say(step: int, what: str, duration: str) -> None:
    print(f'[{step}/5] {what} ({duration})', flush=True)


def call(*command: object) -> str:
    """Runs a command and returns its standard output; stops with the end of its errors if it fails."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, errors='replace')
    if done.returncode != 0:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        if done.returncode < 0:  # it had no chance to say anything
            lines.append(f'ended by {signal.Signals(-done.returncode).name}')
        shown = ' '.join(str(part) for part in command[:6])
        sys.exit('\n'.join(lines[-25:]) + f'\nset-up stopped at: {shown} ...')
    return done.stdout


def requirement(lines: list[str], package: str) -> str:
    """Returns the line of a requirements file that pins a package of either family."""
    return next(line for line in lines if re.match(rf'(onedl-)?{package}==', line))


def create(args: argparse.Namespace) -> None:
    """Installs a stack, this package and its tests' needs into a virtual environment."""
    folder = args.folder.resolve()
    pins = (HERE / f'{args.stack}.txt').read_text().splitlines()
    python = folder / 'bin' / 'python'
    pip = [python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']

    version = f'Python {sys.version_info[0]}.{sys.version_info[1]}'
    say(1, f'{version} in {folder.name}', '5 s')
    if not has_pip(python, version):
        call(sys.executable, '-m', 'venv', '--clear', folder)
    if args.torch == 'installed':
        see_packages_of_this_python(python)

    torch = requirement(pins, 'torch') if args.torch == 'pinned' else installed_torch(python)
    say(2, f'{torch}, which the ops are built against', '30 s and its download')
    if args.wheels is None:
        call(*pip, torch, *BUILD_TOOLS)
    else:
        # Without what they depend on: what the folder lacks is there by another name, such as opencv-python-headless.
        call(*pip, '--no-index', '--no-deps', *sorted(args.wheels.glob('*.whl')))

    mmcv = requirement(pins, 'mmcv')
    say(3, f'{mmcv} with compiled ops', '5 s if built before, else minutes')
    wheel = compiled_wheel(python, mmcv, args)
    call(*pip, '--force-reinstall', '--no-index', '--no-deps', wheel)

    packages = [requirement(pins, 'mmengine'), mmcv, requirement(pins, 'mmdet(ection)?')]
    say(4, f'{packages[0]}, {packages[2]}, mmyolo_ema and what its tests need', '1 minute')
    if args.wheels is None:
        call(*pip, torch, *packages, '-e', f'{ROOT}[test]')
        # Without what they depend on: timm would bring torchvision, which does not work beside a CPU build of torch.
        call(*pip, '--no-deps', '-r', HERE / 'peers.txt')
    else:
        call(*pip, '--no-index', '--no-deps', '--no-build-isolation', '-e', ROOT)

    say(5, 'check that one family is there and its ops run', '20 s')
    print(call(python, HERE / 'verify.py'), end='')
    # The package is installed from where it is: make checks the path, in case the folder has moved.
    operators = call(
        python,
        '-c',
        f'import sys; sys.path.insert(0, {str(HERE)!r})\n'
        'from device import has_cuda_operators; print("cuda" if has_cuda_operators() else "cpu")',
    ).strip()
    (folder / 'ready').write_text(f'{ROOT} {operators}\n')


def see_packages_of_this_python(python: Path) -> None:
    """Lets an environment see all packages of the Python that runs this, behind its own.

    An environment with access to the system's packages would not do: it sees those of the system's Python, and this
    one may itself be of an environment.
    """
    folders = [path for path in sys.path if path.endswith(('site-packages', 'dist-packages'))]
    own = call(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').strip()
    Path(own, 'packages_of_the_python_it_was_made_with.pth').write_text(
        ''.join(f'import site; site.addsitedir({folder!r})\n' for folder in folders)
    )


def installed_torch(python: Path) -> str:
    """Returns the requirement that keeps the torch that an environment sees; stops if it sees none."""
    # What pip calls it: the 2.6.0 of PyPI calls itself 2.6.0+cu124.
    program = 'import torch; from importlib.metadata import version; print(version("torch"))'
    asked = subprocess.run([str(python), '-c', program], capture_output=True, text=True)
    if asked.returncode != 0:
        reason = (asked.stderr.strip().splitlines() or ['no reason given'])[-1]
        sys.exit(
            f'TORCH=installed: {sys.executable} cannot import torch ({reason}). Name the Python that can: '
            'make PYTHON=...'
        )
    return f'torch=={asked.stdout.strip()}'


def has_pip(python: Path, version: str) -> bool:
    """Whether an environment is whole, after an interruption, and of this version of Python."""
    if not python.exists():
        return False
    asked = subprocess.run([str(python), '-m', 'pip', '--version'], capture_output=True, text=True)
    return asked.returncode == 0 and f'({version.lower()})' in asked.stdout


def compiled_wheel(python: Path, mmcv: str, args: argparse.Namespace) -> str:
    """Returns the path of mmcv's wheel; what the build says about itself is shown as it comes."""
    command = [str(python), str(HERE / 'build_mmcv.py'), mmcv, '--device', args.device]
    if args.wheels is not None:
        command += ['--wheels', str(args.wheels)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit('set-up stopped at the ops of mmcv.')
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('stack', choices=['onedl', 'openmmlab'])
    parser.add_argument('folder', type=Path)
    parser.add_argument(
        '--device',
        choices=['auto', 'cpu', 'cuda', 'quick'],
        default='auto',
        help='what mmcv gets operators for; auto: a GPU, where there is one and a CUDA compiler; '
        'quick: a GPU, if they have been built before',
    )
    parser.add_argument(
        '--torch',
        choices=['pinned', 'installed'],
        default='pinned',
        help='installed: that of the Python which runs this, and all its packages with it',
    )
    parser.add_argument('--wheels', type=Path, help='folder that everything comes from (default: the package index)')
    args = parser.parse_args()
    if sys.version_info < (3, 11):
        sys.exit(
            f'Python {sys.version.split()[0]} is too old: 3.11 or newer is needed. '
            'Name another with make PYTHON=python3.12.'
        )
    if args.wheels is not None and not any(args.wheels.glob('*.whl')):
        sys.exit(
            f'WHEELS={args.wheels}: there are no wheels in this folder. Fill it with make wheels WHEELS=... on a '
            'machine with a network.'
        )
    # Two makes at once would write to one environment: the second waits.
    fcntl.flock(os.open(ROOT, os.O_RDONLY), fcntl.LOCK_EX)
    create(args)


if __name__ == '__main__':
    main()
