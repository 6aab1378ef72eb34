"""Fill a folder with what an environment without a network is made from: make ... TORCH=installed WHEELS=folder.

Usage: python3 wheels.py onedl folder 3.12

Everything but torch, and but what an environment with torch usually has: numpy, scipy, matplotlib, OpenCV, pillow,
rich, tqdm, tensorboard, psutil, ninja, safetensors; for the tests pytest and hypothesis too.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from create import BUILD_TOOLS, HERE, call, requirement

# pip compares these names letter by letter.
PLATFORMS = [
    'manylinux_2_28_x86_64',
    'manylinux_2_27_x86_64',
    'manylinux_2_24_x86_64',
    'manylinux_2_17_x86_64',
    'manylinux2014_x86_64',
    'manylinux1_x86_64',
]


def fill(stack: str, folder: Path, python_version: str) -> None:
    """Downloads the packages of a family, and what they need, for another machine's Python."""
    pins = (HERE / f'{stack}.txt').read_text().splitlines()
    mmengine, mmcv, mmdet = (requirement(pins, name) for name in ('mmengine', 'mmcv', 'mmdet(ection)?'))
    with tempfile.TemporaryDirectory() as temporary:
        python = Path(temporary) / 'bin' / 'python'
        call(sys.executable, '-m', 'venv', temporary)
        pip = [python, '-m', 'pip', '--quiet', '--disable-pip-version-check']
        call(*pip, 'install', *(tool for tool in BUILD_TOOLS if tool.startswith(('setuptools', 'wheel'))))
        call(
            *pip,
            'download',
            '--no-deps',
            '--only-binary=:all:',
            '--python-version',
            python_version,
            '--implementation',
            'cp',
            *(f'--platform={platform}' for platform in PLATFORMS),
            '--dest',
            folder,
            mmengine,
            '-r',
            HERE / 'carried.txt',
            '-r',
            HERE / 'peers.txt',
        )
        # Pure Python, and where there is no wheel of it, one can be made anywhere.
        call(*pip, 'wheel', '--no-deps', '--no-build-isolation', '--wheel-dir', folder, mmdet)
        # Compiled on the other machine, against its torch.
        call(
            *pip,
            'download',
            '--no-deps',
            f'--no-binary={mmcv.split("==")[0]}',
            '--no-build-isolation',
            '--dest',
            folder,
            mmcv,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('stack', choices=['onedl', 'openmmlab'])
    parser.add_argument('folder', type=Path)
    parser.add_argument('python_version', help='of the other machine, such as 3.12')
    args = parser.parse_args()
    if args.folder.exists() and any(args.folder.iterdir()):
        sys.exit(f'{args.folder} is not empty: two versions of a package stop the installation. Name an empty folder.')
    fill(args.stack, args.folder, args.python_version)
    files = sorted(args.folder.iterdir())
    print(
        f'{args.folder}: {len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB, for Python '
        f'{args.python_version} on x86-64 Linux. There:\n    make demo TORCH=installed WHEELS={args.folder.name}'
    )


if __name__ == '__main__':
    main()
