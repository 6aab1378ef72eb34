"""Build mmcv with its compiled CPU operators, quickly, and keep the wheel.

A plain ``pip install`` builds mmcv where torch is not importable and silently
yields a wheel without operators. Built in the open it takes half an hour on
two cores, nearly all of it spent parsing torch's headers once per source file
and writing debug information. This script parses the headers once, into a
precompiled header, leaves the debug information out, and checks the result.

Usage: python build_mmcv.py mmcv==2.1.0

Prints the path of the wheel, and nothing else, on standard output. A wheel
built earlier for the same mmcv, torch and Python is reused.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

import torch
from torch.utils import cpp_extension

# Without -g the compiler is three times as fast; -O1 costs the operators
# nothing that a detector's run time shows.
OPTIMISATION = ['-O1', '-g0', '-w', '-DNDEBUG', '-fwrapv']
# What torch's build adds. A precompiled header is used only if it was made
# with the flags of the build, and is silently ignored otherwise.
ADDED_BY_TORCH = ['-fPIC', '-std=c++17', '-DTORCH_API_INCLUDE_EXTENSION_H', '-DTORCH_EXTENSION_NAME=_ext']


def cached_wheel(requirement: str) -> Path:
    """Returns the folder in the user's cache that holds the wheel of a requirement.

    The folder is named after everything that the binary depends on.
    """
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    python = f'{sys.implementation.cache_tag}-{sysconfig.get_platform()}'
    return cache / 'mmyolo_ema' / requirement.replace('==', '-') / f'torch-{torch.__version__}' / python


def check_compiler() -> str:
    """Returns torch's choice of C++ compiler, or stops with what is missing."""
    compiler = cpp_extension.get_cxx_compiler()
    if not compiler.strip() or shutil.which(compiler.split()[0]) is None:
        sys.exit(f'no C++ compiler: {compiler!r} is not there. Install one (Debian: apt install g++) '
                 'or name yours in the variable CXX.')
    header = Path(sysconfig.get_path('include')) / 'Python.h'
    if not header.exists():
        sys.exit(f'no Python headers: {header} is not there. Install them (Debian: apt install python3-dev).')
    return compiler


def run(command: list, log: Path, what: str, **kwargs) -> None:
    """Runs a command with its output in a log, and stops with the log's end if it fails."""
    with log.open('a') as stream:
        status = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, **kwargs).returncode
    if status != 0:
        end = '\n'.join(log.read_text(errors='replace').splitlines()[-25:])
        sys.exit(f'{end}\n{what} failed; the lines above are the end of its output.')


def precompile_header(compiler: str, folder: Path, log: Path) -> Path:
    """Writes a header that includes torch's, precompiled beside it (about 430 MB)."""
    header = folder / 'torch_types.hpp'
    header.write_text('#include <torch/types.h>\n')
    includes = [*cpp_extension.include_paths(), sysconfig.get_path('include')]
    flags = [*OPTIMISATION, *ADDED_BY_TORCH, *(f'-I{path}' for path in includes)]
    command = [*shlex.split(compiler), *flags, '-x', 'c++-header', str(header), '-o', f'{header}.gch']
    run(command, log, "precompiling torch's header")
    return header


def build_wheel(requirement: str, compiler: str, folder: Path) -> Path:
    """Builds the wheel of a requirement in a folder and returns its path."""
    log = folder / 'build.log'
    header = precompile_header(compiler, folder, log)
    environment = dict(
        os.environ,
        CFLAGS=shlex.join([*OPTIMISATION, '-include', str(header)]),
        MMCV_WITH_OPS='1',
        # The environment that make builds is a CPU one, also beside a GPU.
        CUDA_VISIBLE_DEVICES='')
    environment.setdefault('MAX_JOBS', str(os.cpu_count() or 1))
    name = requirement.split('==')[0]
    command = [
        sys.executable, '-m', 'pip', 'wheel', '--verbose', '--no-deps', '--no-build-isolation', '--no-cache-dir',
        f'--no-binary={name}', '--wheel-dir', str(folder), requirement
    ]
    run(command, log, f'building {requirement}', env=environment)
    wheel = next(folder.glob('*.whl'))
    with zipfile.ZipFile(wheel) as archive:
        if not any(entry.startswith('mmcv/_ext.') for entry in archive.namelist()):
            sys.exit(f'no ops in the result: {wheel.name} holds no compiled mmcv._ext.')
    return wheel


def keep(wheel: Path, folder: Path) -> Path:
    """Moves a finished wheel to the cache in one step, so that a broken-off copy is never reused."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f'{wheel.name}.{os.getpid()}.part'
    with wheel.open('rb') as source, part.open('wb') as target:
        shutil.copyfileobj(source, target)
        target.flush()
        os.fsync(target.fileno())
    return part.replace(folder / wheel.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('requirement', help='such as mmcv==2.1.0 or onedl-mmcv==2.3.6')
    requirement = parser.parse_args().requirement
    folder = cached_wheel(requirement)
    wheel = next(folder.glob('*.whl'), None)
    if wheel is None:
        compiler = check_compiler()
        print(f'      compiling the ops of {requirement}: about 4 minutes on 2 cores', file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory(prefix='mmyolo_ema-') as temporary:
            wheel = keep(build_wheel(requirement, compiler, Path(temporary)), folder)
    print(wheel)


if __name__ == '__main__':
    main()
