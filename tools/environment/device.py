"""Look what there is to run on, say it in one line, and run Python there.

Usage: python device.py [--gpu-only] auto tools/demo.py

The word before the command is what the user asks for: cpu, cuda, or auto, which takes a GPU where mmcv has operators
for it. Without a command, the line is all.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils import cpp_extension

WAYS = (
    'Validating a detector on a GPU needs mmcv with CUDA operators: install a CUDA compiler (nvcc) and run '
    'make DEVICE=cuda, or install a prebuilt wheel (mim install mmcv; for the onedl family, PyPI has some, such as '
    'onedl-mmcv-cu128-torch2-8)'
)


class Machine(NamedTuple):
    """What there is to run on.

    Attributes:
        gpu: Name of the NVIDIA GPU that torch sees; empty if there is none.
        architecture: Its compute capability, such as '9.0'.
        compiler: Path of nvcc; empty if there is none.
    """

    gpu: str
    architecture: str
    compiler: str


def look() -> Machine:
    """Returns what torch sees, and the CUDA compiler that it would use."""
    nvcc = shutil.which(Path(cpp_extension.CUDA_HOME or '') / 'bin' / 'nvcc') or ''
    if not (torch.cuda.is_available() and torch.version.cuda):
        return Machine('', '', nvcc)
    return Machine(torch.cuda.get_device_name(), '{}.{}'.format(*torch.cuda.get_device_capability()), nvcc)


def has_cuda_operators() -> bool:
    """Whether mmcv was compiled with operators for GPUs."""
    from mmcv import _ext

    return _ext.get_compiling_cuda_version() != 'not available'


def choose(wanted: str, machine: Machine) -> tuple[str, str]:
    """Returns where to run, 'cpu' or 'cuda', and the line that says why; stops if it is not what was asked for."""
    if wanted == 'cpu':
        return 'cpu', 'the CPU, as DEVICE=cpu asks for'
    if not machine.gpu:
        return _unless(wanted == 'cuda', f'the CPU: torch {torch.__version__} sees no NVIDIA GPU')
    if not has_cuda_operators():
        return _unless(
            wanted == 'cuda',
            f'the CPU, although torch {torch.__version__} sees {machine.gpu}: '
            f'training runs there, but mmcv has CPU operators only. {WAYS}',
        )
    return 'cuda', (
        f'{machine.gpu}, with torch {torch.__version__} and CUDA operators; CUDA compiler: {machine.compiler or "none"}'
    )


def _unless(refused: bool, line: str) -> tuple[str, str]:
    if refused:
        sys.exit(f'DEVICE=cuda is not possible here. It would be {line}.')
    return 'cpu', line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('wanted', choices=['auto', 'cpu', 'cuda'])
    parser.add_argument('--gpu-only', action='store_true', help='run on a GPU, whatever operators mmcv has, or not')
    parser.add_argument('command', nargs=argparse.REMAINDER, help='arguments of Python')
    args = parser.parse_args()
    if args.gpu_only:
        if args.wanted == 'cpu' or not look().gpu:
            return
    else:
        device, line = choose(args.wanted, look())
        print(f'device: {line}', flush=True)
        if device == 'cpu':
            os.environ['CUDA_VISIBLE_DEVICES'] = ''
    if args.command:
        os.execv(sys.executable, [sys.executable, *args.command])


if __name__ == '__main__':
    main()
