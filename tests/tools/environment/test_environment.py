"""The set-up stops at the first failure, with the reason."""

import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ENVIRONMENT = Path(__file__).resolve().parents[3] / 'tools' / 'environment'
WHEEL = 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl'


@pytest.fixture
def build_mmcv(load_tool, monkeypatch, tmp_path):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setattr(sys, 'argv', ['build_mmcv.py', 'mmcv==2.1.0'])
    return load_tool('environment/build_mmcv')


def write_wheel(path, *files):
    with zipfile.ZipFile(path, 'w') as archive:
        for file in files:
            archive.writestr(file, '')
    return path


def test_this_environment_is_ready():
    done = subprocess.run([sys.executable, ENVIRONMENT / 'verify.py'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'ready: torch' in done.stdout


def test_torch_is_the_only_hard_dependency():
    # A requirement on a package of one family would overwrite the other's.
    needs = [need for need in metadata.requires('mmyolo_ema') if 'extra ==' not in need]
    assert needs == ['torch']


def test_both_families_are_refused(load_tool, monkeypatch):
    verify = load_tool('environment/verify')
    monkeypatch.setattr(verify, 'installed', lambda packages: [f'{packages[0]} 1.0'])
    with pytest.raises(SystemExit, match=r'both package families present: onedl-mmengine 1\.0 and mmengine 1\.0'):
        verify.main()


def test_mmcv_without_ops_is_refused(load_tool, monkeypatch):
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
    with pytest.raises(SystemExit, match=r'no ops in the result: mmcv-2\.1\.0-.*\.whl holds no compiled mmcv\._ext'):
        build_mmcv.main()
    assert not list(tmp_path.rglob('*.whl'))


def test_failed_build_shows_the_end_of_its_output(build_mmcv, tmp_path):
    log = tmp_path / 'log'
    with pytest.raises(SystemExit, match=r'(?s)the reason\n.*building mmcv failed'):
        build_mmcv.run([sys.executable, '-c', 'import sys; sys.exit("the reason")'], log, 'building mmcv')


def test_wheel_is_kept_and_reused(monkeypatch, build_mmcv, capsys):
    builds = []

    def build_wheel(requirement, compiler, folder):
        builds.append(requirement)
        return write_wheel(folder / WHEEL, 'mmcv/_ext.so')

    monkeypatch.setattr(build_mmcv, 'build_wheel', build_wheel)
    for _ in range(2):
        build_mmcv.main()
    first, second = capsys.readouterr().out.split()
    assert first == second
    assert builds == ['mmcv==2.1.0']
    assert zipfile.is_zipfile(first)
    assert len(list(Path(first).parent.iterdir())) == 1


def test_failed_step_stops_the_set_up_with_its_reason(load_tool):
    create = load_tool('environment/create')
    with pytest.raises(SystemExit, match=r'(?s)the reason\nset-up stopped at: '):
        create.call(sys.executable, '-c', 'import sys; sys.exit("the reason")')
    assert create.call(sys.executable, '-c', 'print(1)') == '1\n'


def test_environment_that_was_broken_off_is_not_taken_for_whole(load_tool, tmp_path):
    create = load_tool('environment/create')
    version = f'Python {sys.version_info[0]}.{sys.version_info[1]}'
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', tmp_path], check=True)
    assert not create.has_pip(tmp_path / 'bin' / 'python', version)
    assert not create.has_pip(tmp_path / 'nowhere', version)
    assert create.has_pip(Path(sys.executable), version)
    assert not create.has_pip(Path(sys.executable), 'Python 2.7')


@pytest.mark.parametrize(('stack', 'mmcv'), [('onedl', 'onedl-mmcv==2.3.6'), ('openmmlab', 'mmcv==2.1.0')])
def test_pins_of_a_stack_are_read(load_tool, stack, mmcv):
    create = load_tool('environment/create')
    lines = (ENVIRONMENT / f'{stack}.txt').read_text().splitlines()
    assert create.requirement(lines, 'mmcv') == mmcv
    assert create.requirement(lines, 'torch') == 'torch==2.13.0'
