"""Build mmcv with its compiled operators, quickly, and keep the wheel.

A plain ``pip install`` builds mmcv where torch is not importable and silently
yields a wheel without operators. Built in the open it takes half an hour on
two cores, nearly all of it spent parsing torch's headers once per source file
and writing debug information. This script parses the headers once, into a
precompiled header, leaves the debug information out, and checks the result.
Where torch sees an NVIDIA GPU and a CUDA compiler, the CUDA operators are
built too, for this GPU alone.

Usage: python build_mmcv.py mmcv==2.1.0

Prints the path of the wheel, and nothing else, on standard output. A wheel
built earlier for the same mmcv, torch, Python and GPU is reused.
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
from device import WAYS, look
from torch.utils import cpp_extension

# Without -g the compiler is three times as fast; -O1 costs the operators
# nothing that a detector's run time shows.
OPTIMISATION = ['-O1', '-g0', '-w', '-DNDEBUG', '-fwrapv']
# What torch's build adds. A precompiled header is used only if it was made
# with the flags of the build, and is silently ignored otherwise.
ADDED_BY_TORCH = ['-fPIC', '-std=c++17', '-DTORCH_API_INCLUDE_EXTENSION_H', '-DTORCH_EXTENSION_NAME=_ext']


# Seconds that a core takes for all files, by measurement: of the CPU operators, and of the CUDA operators.
CORE_SECONDS = {'cpu': 300, 'cuda': 1500}


class BuildError(Exception):
    """A build failed; the message is the end of its output."""


def cached_wheel(requirement: str, architecture: str) -> Path:
    """Returns the folder in the user's cache that holds the wheel of a requirement.

    The folder is named after everything that the binary depends on; one with CUDA operators after the architecture of
    its GPU too, such as '9.0'.
    """
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache')
    python = f'{sys.implementation.cache_tag}-{sysconfig.get_platform()}'
    folder = cache / 'mmyolo_ema' / requirement.replace('==', '-') / f'torch-{torch.__version__}' / python
    return folder / f'sm_{architecture.replace(".", "")}' if architecture else folder


def check_compiler() -> str:
    """Returns torch's choice of C++ compiler, or stops with what is missing."""
    compiler = cpp_extension.get_cxx_compiler()
    if not compiler.strip() or shutil.which(compiler.split()[0]) is None:
        sys.exit(
            f'no C++ compiler: {compiler!r} is not there. Install one (Debian: apt install g++) '
            'or name yours in the variable CXX.'
        )
    header = Path(sysconfig.get_path('include')) / 'Python.h'
    if not header.exists():
        sys.exit(f'no Python headers: {header} is not there. Install them (Debian: apt install python3-dev).')
    return compiler


def run(command: list[str], log: Path, what: str, **kwargs) -> None:
    """Runs a command with its output in a log; raises BuildError with the log's end if it fails."""
    with log.open('a') as stream:
        status = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, **kwargs).returncode
    if status != 0:
        end = '\n'.join(log.read_text(errors='replace').splitlines()[-25:])
        raise BuildError(f'{end}\n{what} failed; the lines above are the end of its output.')


def precompile_header(compiler: str, folder: Path, log: Path) -> Path:
    """Writes a header that includes torch's, precompiled beside it (about 430 MB)."""
    header = folder / 'torch_types.hpp'
    header.write_text('#include <torch/types.h>\n')
    includes = [*cpp_extension.include_paths(), sysconfig.get_path('include')]
    # Older torches name the form of the C++ library's strings that they were built with.
    strings: list[str] = getattr(cpp_extension, '_get_glibcxx_abi_build_flags', list)()
    flags = [*OPTIMISATION, *ADDED_BY_TORCH, *strings, *(f'-I{path}' for path in includes)]
    command = [*shlex.split(compiler), *flags, '-x', 'c++-header', str(header), '-o', f'{header}.gch']
    run(command, log, "precompiling torch's header")
    return header


def add_missing_header(folder: Path) -> None:
    """Writes the header that mmcv includes by its old name, where torch has it by its new one only."""
    if not any((Path(path) / 'THC').is_dir() for path in cpp_extension.include_paths()):
        (folder / 'THC').mkdir()
        (folder / 'THC' / 'THCAtomics.cuh').write_text('#include <ATen/cuda/Atomic.cuh>\n')


def standard_library(compiler: str) -> list[str]:
    """Returns the linker's options for the shared C++ library.

    Where a compiler has the static one only, or is told to prefer it, the operators would hold a second copy of it
    beside torch's: the first stream that they use then ends the process.
    """
    done = subprocess.run([*shlex.split(compiler), '-print-file-name=libstdc++.so.6'], capture_output=True, text=True)
    path = done.stdout.strip()
    return ['-Wl,--no-as-needed', path, '-Wl,--as-needed'] if os.path.isabs(path) else []


def build_environment(header: Path, architecture: str) -> dict[str, str]:
    """Returns the environment variables of a build, with CUDA operators if an architecture is named."""
    link = [*shlex.split(os.environ.get('LDFLAGS', '')), *standard_library(check_compiler())]
    environment = dict(
        os.environ,
        CFLAGS=shlex.join([*OPTIMISATION, '-include', str(header)]),
        MMCV_WITH_OPS='1',
        LDFLAGS=shlex.join(link),
    )
    environment.setdefault('MAX_JOBS', str(os.cpu_count() or 1))
    if architecture:
        add_missing_header(header.parent)
        environment.update(
            FORCE_CUDA='1',
            TORCH_CUDA_ARCH_LIST=architecture,
            NVCC_PREPEND_FLAGS=f'-I{header.parent} -w {os.environ.get("NVCC_PREPEND_FLAGS", "")}',
        )
    else:
        environment.update(FORCE_CUDA='0', CUDA_VISIBLE_DEVICES='')
    return environment


def build_wheel(requirement: str, architecture: str, source: list[str], folder: Path) -> Path:
    """Builds the wheel of a requirement in an empty folder and returns its path; pip's options say where it comes from.

    Raises:
        BuildError: If the build fails, or yields no operators.
    """
    log = folder / 'build.log'
    header = precompile_header(check_compiler(), folder, log)
    name = requirement.split('==')[0]
    command = [
        sys.executable,
        '-m',
        'pip',
        'wheel',
        '--verbose',
        '--no-deps',
        '--no-build-isolation',
        '--no-cache-dir',
        f'--no-binary={name}',
        *source,
        '--wheel-dir',
        str(folder),
        requirement,
    ]
    run(command, log, f'building {requirement}', env=build_environment(header, architecture))
    wheel = next(folder.glob('*.whl'))
    with zipfile.ZipFile(wheel) as archive:
        if not any(entry.startswith('mmcv/_ext.') for entry in archive.namelist()):
            raise BuildError(f'no ops in the result: {wheel.name} holds no compiled mmcv._ext.')
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


def kept_wheel(requirement: str, architecture: str, source: list[str]) -> Path:
    """Returns the wheel in the cache; builds it first if it is not there."""
    folder = cached_wheel(requirement, architecture)
    wheel = next(folder.glob('*.whl'), None)
    if wheel is None:
        kinds = ['cpu', 'cuda'] if architecture else ['cpu']
        jobs = int(os.environ.get('MAX_JOBS') or os.cpu_count() or 1)
        minutes = 1 + sum(CORE_SECONDS[kind] for kind in kinds) / jobs / 60
        what = f'the CPU and CUDA ops (compute capability {architecture})' if architecture else 'the ops'
        say(f'compiling {what} of {requirement}: about {minutes:.0f} minutes with {jobs} jobs')
        with tempfile.TemporaryDirectory(prefix='mmyolo_ema-') as temporary:
            wheel = keep(build_wheel(requirement, architecture, source, Path(temporary)), folder)
    return wheel


def architecture_to_build(device: str) -> str:
    """Returns the architecture of the GPU to build CUDA operators for, empty for none; stops if they cannot be had."""
    machine = look()
    if device == 'cpu' or not (machine.gpu or device == 'cuda'):
        return ''
    if not machine.gpu:
        sys.exit(f'DEVICE=cuda: torch {torch.__version__} sees no NVIDIA GPU here.')
    if not machine.compiler:
        if device == 'cuda':
            sys.exit(f'DEVICE=cuda: there is no CUDA compiler for {machine.gpu}. {WAYS}.')
        say(f'{machine.gpu}, but no CUDA compiler: training runs on the GPU. {WAYS}.')
        return ''
    return machine.architecture


def say(line: str) -> None:
    """Prints a line beside the result, which is on standard output."""
    print(f'      {line}', file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('requirement', help='such as mmcv==2.1.0 or onedl-mmcv==2.3.6')
    parser.add_argument(
        '--device',
        choices=['auto', 'cpu', 'cuda', 'quick'],
        default='auto',
        help='cuda: CUDA operators or nothing; auto: where they can be built; quick: where they have '
        'been built before (default: auto)',
    )
    parser.add_argument('--wheels', type=Path, help='folder that mmcv comes from (default: the package index)')
    args = parser.parse_args()
    source = ['--no-index', '--find-links', str(args.wheels)] if args.wheels else []
    architecture = architecture_to_build(args.device)
    if args.device == 'quick' and not any(cached_wheel(args.requirement, architecture).glob('*.whl')):
        architecture = ''
    try:
        wheel = kept_wheel(args.requirement, architecture, source)
    except BuildError as error:
        if not architecture or args.device == 'cuda':
            sys.exit(str(error))
        say(f'{error}\nCPU ops are built instead. {WAYS}.')
        try:
            wheel = kept_wheel(args.requirement, '', source)
        except BuildError as error:
            sys.exit(str(error))
    print(wheel)


if __name__ == '__main__':
    main()
