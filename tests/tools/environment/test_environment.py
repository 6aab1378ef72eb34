"""The set-up stops at the first failure, with the reason."""

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers import load_tool

pytestmark = pytest.mark.any_family

ENVIRONMENT = Path(__file__).resolve().parents[3] / 'tools' / 'environment'
WHEEL = 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl'
# The name of a GPU, its architecture, and the CUDA compiler.
NO_GPU, GPU, GPU_WITHOUT_COMPILER = (
    SimpleNamespace(gpu=gpu, architecture=architecture, compiler=nvcc)
    for gpu, architecture, nvcc in (('', '', ''), ('A GPU', '9.0', '/nvcc'), ('A GPU', '9.0', ''))
)


@pytest.fixture(autouse=True)
def _modules_beside_the_scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(ENVIRONMENT))


@pytest.fixture
def build_mmcv(monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(sys, 'argv', ['build_mmcv.py', 'mmcv==2.1.0'])
    return load_tool('environment/build_mmcv')


def write_wheel(path, *files):
    with zipfile.ZipFile(path, 'w') as archive:
        for file in files:
            archive.writestr(file, '')
    return path


@pytest.mark.slow
def test_this_environment_is_ready():
    done = subprocess.run([sys.executable, ENVIRONMENT / 'verify.py'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'ready: torch' in done.stdout


def test_both_families_are_refused(monkeypatch):
    verify = load_tool('environment/verify')
    monkeypatch.setattr(verify, 'installed', lambda packages: [f'{packages[0]} 1.0'])
    with pytest.raises(SystemExit, match=r'both package families present: onedl-mmengine 1\.0 and mmengine 1\.0'):
        verify.main()


def test_mmcv_without_ops_is_refused(monkeypatch):
    verify = load_tool('environment/verify')
    monkeypatch.setitem(sys.modules, 'mmcv.ops', None)
    with pytest.raises(SystemExit, match=r'mmcv has no working ops: ModuleNotFoundError: '):
        verify.main()


@pytest.mark.parametrize('compiler', ['/nowhere/g++', '', '"g++'])
def test_missing_compiler_is_named(monkeypatch, build_mmcv, compiler):
    monkeypatch.setenv('CXX', compiler)
    with pytest.raises(SystemExit, match=re.escape(f'no C++ compiler: {compiler!r} is not there')):
        build_mmcv.main()


def test_wheel_without_ops_is_not_kept(monkeypatch, build_mmcv, tmp_path):
    monkeypatch.setattr(build_mmcv, 'precompile_header', lambda compiler, folder, log: folder / 'header.hpp')
    monkeypatch.setattr(build_mmcv, 'run', lambda command, log, what, env: write_wheel(log.parent / WHEEL, 'mmcv/a.py'))
    monkeypatch.setattr(build_mmcv, 'look', lambda: NO_GPU)
    with pytest.raises(SystemExit, match=r'no ops in the result: mmcv-2\.1\.0-.*\.whl holds no compiled mmcv\._ext'):
        build_mmcv.main()
    assert not list(tmp_path.rglob('*.whl'))


def test_failed_build_shows_the_end_of_its_output(build_mmcv, tmp_path):
    log = tmp_path / 'log'
    with pytest.raises(build_mmcv.BuildError, match=r'(?s)the reason\n.*building mmcv failed'):
        build_mmcv.run([sys.executable, '-c', 'import sys; sys.exit("the reason")'], log, 'building mmcv')


def test_wheel_is_kept_and_reused(monkeypatch, build_mmcv, capsys):
    builds = []

    def build_wheel(requirement, architecture, source, folder):
        builds.append((requirement, architecture))
        return write_wheel(folder / WHEEL, 'mmcv/_ext.so')

    monkeypatch.setattr(build_mmcv, 'build_wheel', build_wheel)
    monkeypatch.setattr(build_mmcv, 'look', lambda: NO_GPU)
    for _ in range(2):
        build_mmcv.main()
    first, second = capsys.readouterr().out.split()
    assert first == second
    assert builds == [('mmcv==2.1.0', '')]
    assert zipfile.is_zipfile(first)
    assert len(list(Path(first).parent.iterdir())) == 1


def test_failed_step_stops_the_set_up_with_its_reason():
    create = load_tool('environment/create')
    with pytest.raises(SystemExit, match=r'(?s)the reason\nset-up stopped at: '):
        create.call(sys.executable, '-c', 'import sys; sys.exit("the reason")')
    assert create.call(sys.executable, '-c', 'print(1)') == '1\n'


def test_environment_that_was_broken_off_is_not_taken_for_whole(tmp_path):
    create = load_tool('environment/create')
    version = f'Python {sys.version_info[0]}.{sys.version_info[1]}'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path], check=True)
    assert not create.has_pip(tmp_path / 'bin' / 'python', version)
    assert not create.has_pip(tmp_path / 'nowhere', version)
    assert create.has_pip(Path(sys.executable), version)
    assert not create.has_pip(Path(sys.executable), 'Python 2.7')


@pytest.mark.parametrize(('stack', 'mmcv'), [('onedl', 'onedl-mmcv==2.3.6'), ('openmmlab', 'mmcv==2.1.0')])
def test_pins_of_a_stack_are_read(stack, mmcv):
    create = load_tool('environment/create')
    lines = (ENVIRONMENT / f'{stack}.txt').read_text().splitlines()
    assert create.requirement(lines, 'mmcv') == mmcv
    assert create.requirement(lines, 'torch') == 'torch==2.13.0'


def built(monkeypatch, build_mmcv, machine, *flags, works=lambda architecture: True):
    """Runs the build on a machine and returns the architectures that wheels were built for, in order."""
    architectures = []

    def build_wheel(requirement, architecture, source, folder):
        architectures.append(architecture)
        if not works(architecture):
            raise build_mmcv.BuildError('no such header')
        return write_wheel(folder / WHEEL, 'mmcv/_ext.so')

    monkeypatch.setattr(build_mmcv, 'build_wheel', build_wheel)
    monkeypatch.setattr(build_mmcv, 'look', lambda: machine)
    monkeypatch.setattr(sys, 'argv', ['build_mmcv.py', 'mmcv==2.1.0', *flags])
    build_mmcv.main()
    return architectures


@pytest.mark.parametrize(
    ('machine', 'flags', 'expected'),
    [
        (NO_GPU, (), ['']),
        (GPU, (), ['9.0']),
        (GPU, ('--device', 'cpu'), ['']),
        (GPU, ('--device', 'quick'), ['']),
    ],
)
def test_operators_are_built_for_the_gpu_that_is_there(monkeypatch, build_mmcv, machine, flags, expected):
    assert built(monkeypatch, build_mmcv, machine, *flags) == expected


def test_wheel_for_a_gpu_is_kept_apart_and_found_again(monkeypatch, build_mmcv, capsys):
    built(monkeypatch, build_mmcv, GPU)
    assert built(monkeypatch, build_mmcv, GPU, '--device', 'quick') == []
    said = capsys.readouterr()
    assert {Path(path).parent.name for path in said.out.split()} == {'sm_90'}
    assert 'compiling the CPU and CUDA ops (compute capability 9.0) of mmcv==2.1.0: about ' in said.err


def test_gpu_without_a_compiler_gets_cpu_operators_and_the_ways_to_others(monkeypatch, build_mmcv, capsys):
    assert built(monkeypatch, build_mmcv, GPU_WITHOUT_COMPILER) == ['']
    said = capsys.readouterr().err
    assert 'A GPU, but no CUDA compiler: training runs on the GPU. Validating a detector on a GPU needs' in said
    assert 'mim install mmcv' in said


def test_cuda_operators_that_cannot_be_built_leave_those_for_the_cpu(monkeypatch, build_mmcv, capsys):
    assert built(monkeypatch, build_mmcv, GPU, works=lambda architecture: not architecture) == ['9.0', '']
    assert 'no such header\nCPU ops are built instead.' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('machine', 'reason'),
    [(NO_GPU, 'sees no NVIDIA GPU here'), (GPU_WITHOUT_COMPILER, 'there is no CUDA compiler for A GPU')],
)
def test_cuda_that_cannot_be_had_stops_the_build(monkeypatch, build_mmcv, machine, reason):
    with pytest.raises(SystemExit, match=f'DEVICE=cuda: .*{reason}'):
        built(monkeypatch, build_mmcv, machine, '--device', 'cuda')


def test_header_is_added_by_its_old_name_only_where_it_is_missing(monkeypatch, build_mmcv, tmp_path):
    (tmp_path / 'torch' / 'THC').mkdir(parents=True)
    for name, includes in (('old', [tmp_path / 'torch']), ('new', [tmp_path])):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(build_mmcv.cpp_extension, 'include_paths', lambda includes=includes: includes)
        build_mmcv.add_missing_header(tmp_path / name)
    assert not (tmp_path / 'old' / 'THC').exists()
    assert 'ATen/cuda/Atomic.cuh' in (tmp_path / 'new' / 'THC' / 'THCAtomics.cuh').read_text()


def test_operators_share_the_cpp_library_of_torch(build_mmcv, tmp_path):
    # As where a compiler prefers the static library: a stream in a second copy of it ends the process.
    source, library = tmp_path / 'stream.cpp', tmp_path / 'stream.so'
    source.write_text('#include <sstream>\nint digits(int n) { std::ostringstream s; s << n; return s.str().size(); }')
    subprocess.run(
        ['g++', '-shared', '-fPIC', *build_mmcv.standard_library('g++'), source, '-static-libstdc++', '-o', library],
        check=True,
    )
    assert b'libstdc++.so.6' in library.read_bytes()


@pytest.mark.parametrize(
    ('wanted', 'machine', 'operators', 'expected'),
    [
        ('auto', NO_GPU, False, ('cpu', 'the CPU: torch .* sees no NVIDIA GPU')),
        ('cpu', GPU, True, ('cpu', 'the CPU, as DEVICE=cpu asks for')),
        ('auto', GPU, True, ('cuda', 'A GPU, with torch .* and CUDA operators; CUDA compiler: /nvcc')),
        ('cuda', GPU_WITHOUT_COMPILER, True, ('cuda', 'CUDA compiler: none')),
        ('auto', GPU, False, ('cpu', r'training runs there, but mmcv has CPU operators only\. .*\(mim install mmcv')),
    ],
)
def test_device_is_chosen_and_said_in_one_line(monkeypatch, wanted, machine, operators, expected):
    device = load_tool('environment/device')
    monkeypatch.setattr(device, 'has_cuda_operators', lambda: operators)
    chosen, line = device.choose(wanted, machine)
    assert chosen == expected[0]
    assert re.search(expected[1], line)
    assert '\n' not in line


@pytest.mark.parametrize('machine', [NO_GPU, GPU])
def test_gpu_that_cannot_be_used_is_refused_if_it_is_asked_for(monkeypatch, machine):
    device = load_tool('environment/device')
    monkeypatch.setattr(device, 'has_cuda_operators', lambda: False)
    with pytest.raises(SystemExit, match='DEVICE=cuda is not possible here'):
        device.choose('cuda', machine)


def test_environment_sees_the_packages_of_the_python_that_made_it(tmp_path):
    create = load_tool('environment/create')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path], check=True)
    python = tmp_path / 'bin' / 'python'
    assert subprocess.run([python, '-c', 'import torch'], capture_output=True).returncode != 0
    create.see_packages_of_this_python(python)
    assert create.installed_torch(python) == f'torch=={metadata.version("torch")}'


def test_torch_that_is_kept_goes_by_the_version_that_pip_knows(tmp_path):
    create = load_tool('environment/create')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path], check=True)
    packages = next(tmp_path.glob('lib/python*/site-packages'))
    (packages / 'torch.py').write_text("__version__ = '2.6.0+cu124'")  # as PyPI's build calls itself
    (packages / 'torch-2.6.0.dist-info').mkdir()
    (packages / 'torch-2.6.0.dist-info' / 'METADATA').write_text('Metadata-Version: 2.1\nName: torch\nVersion: 2.6.0\n')
    assert create.installed_torch(tmp_path / 'bin' / 'python') == 'torch==2.6.0'


def test_python_without_torch_is_refused_as_one_to_take_it_from(tmp_path):
    create = load_tool('environment/create')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path], check=True)
    with pytest.raises(SystemExit, match=r'TORCH=installed: .* cannot import torch \(ModuleNotFoundError'):
        create.installed_torch(tmp_path / 'bin' / 'python')


def test_step_that_a_signal_ends_is_told():
    create = load_tool('environment/create')
    with pytest.raises(SystemExit, match='ended by SIGSEGV'):
        create.call(sys.executable, '-c', 'import os; os.kill(os.getpid(), 11)')


def test_empty_folder_of_wheels_is_refused(monkeypatch, tmp_path):
    create = load_tool('environment/create')
    monkeypatch.setattr(sys, 'argv', ['create.py', 'onedl', '.venv', '--wheels', str(tmp_path)])
    with pytest.raises(SystemExit, match=r'there are no wheels in this folder. Fill it with make wheels'):
        create.main()


def test_folder_with_other_wheels_is_not_filled(monkeypatch, tmp_path):
    wheels = load_tool('environment/wheels')
    write_wheel(tmp_path / WHEEL)
    monkeypatch.setattr(sys, 'argv', ['wheels.py', 'onedl', str(tmp_path), '3.12'])
    with pytest.raises(SystemExit, match='is not empty'):
        wheels.main()


def test_make_runs_no_second_time_without_a_gpu():
    options = dict(cwd=ENVIRONMENT.parents[1], capture_output=True, text=True)
    recipe = subprocess.run(['make', '--just-print', '--no-print-directory', 'test'], **options).stdout
    command = recipe.splitlines()[-1].split()[1:]
    environment = {**os.environ, 'CUDA_VISIBLE_DEVICES': ''}
    result = subprocess.run([sys.executable, *command], env=environment, **options)
    assert command[-2:] == ['-m', 'gpu']
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')
