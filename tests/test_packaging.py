import ast
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import mmyolo_ema
from mmyolo_ema import checkpoint
from tests.helpers import ROOT


def test_configs_and_tools_are_where_openmim_looks():
    folder = ROOT / 'mmyolo_ema' / '.mim'
    assert sorted(path.name for path in folder.iterdir()) == ['configs', 'demo', 'tools']
    for link in folder.iterdir():
        assert link.resolve() == ROOT / link.name
    assert mmyolo_ema.__file__.startswith(str(ROOT))


IN_THE_REPOSITORY_ONLY = ('benchmark_ema.py', 'gpu_check.py', 'gpu_chapter.py')


@pytest.mark.slow
def test_documented_names_are_those_of_the_package():
    code = (
        'import mmyolo_ema; print(mmyolo_ema.schedule.mean_age(1), mmyolo_ema.checkpoint.inspect.__name__, '
        'mmyolo_ema.posthoc.fit.__name__, all(hasattr(mmyolo_ema, name) for name in mmyolo_ema.__all__))'
    )
    ran = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ['0.0', 'inspect', 'fit', 'True']
    assert {'EMAHook', 'ExpMomentumEMA', 'RawWeightsHook', 'SnapshotHook', 'StoredWeightsHook', '__version__'} <= set(
        mmyolo_ema.__all__
    )


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'  # what setuptools has built before would go into the wheel
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns('.[a-ln-z]*', 'build', 'work_dirs'))
    build = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation', '-w', folder]
    subprocess.run([*build, source], check=True)
    return next(folder.glob('*.whl'))


@pytest.mark.slow
@pytest.mark.any_family
def test_wheel_holds_configs_tools_and_demo(wheel):
    assert wheel.name.startswith(f'mmyolo_ema-{mmyolo_ema.__version__}-')
    with ZipFile(wheel) as content:
        names = set(content.namelist())
    for folder, pattern in (('configs', '**/*.py'), ('tools', '*.py'), ('tools', '*.sh'), ('demo', '**/*.json')):
        files = {path for path in (ROOT / folder).glob(pattern) if path.name not in IN_THE_REPOSITORY_ONLY}
        assert files
        assert {f'mmyolo_ema/.mim/{path.relative_to(ROOT)}' for path in files} <= names
    assert not any('__pycache__' in name or name.endswith(IN_THE_REPOSITORY_ONLY) for name in names)


@pytest.mark.slow
def test_installed_wheel_tells_a_schedule_and_trains_the_demo(wheel, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('PYTHONPATH', raising=False)
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', 'new'], check=True)
    packages = next(Path('new').glob('lib/python*/site-packages'))
    # It sees the packages of this environment, but for ours, whose editable install is no folder.
    (packages / 'others.pth').write_text('\n'.join(path for path in sys.path if path.endswith('-packages')))
    pip = [sys.executable, '-m', 'pip', '--python', 'new/bin/python', 'install', '--quiet', '--no-deps', '--no-index']
    subprocess.run([*pip, wheel], check=True)
    config = packages / 'mmyolo_ema' / '.mim' / 'configs' / 'demo' / 'rtmdet_nuclei.py'
    told = subprocess.run(['new/bin/mmyolo-ema', 'schedule', config], check=True, capture_output=True, text=True)
    assert '480 updates' in told.stdout
    short = ['train_cfg.max_epochs=1', 'train_cfg.val_interval=1', 'train_dataloader.dataset.indices=16']
    subprocess.run(['new/bin/mmyolo-ema', 'train', config, '--work-dir', 'run', '--cfg-options', *short], check=True)
    assert checkpoint.weights_in(checkpoint.read('run/epoch_1.pth')) == ['ema', 'raw']


def test_every_package_that_is_imported_is_declared():
    imported = set()
    for path in {*(ROOT / 'mmyolo_ema').rglob('*.py')} - {*(ROOT / 'mmyolo_ema' / '.mim').rglob('*.py')}:
        for node in ast.walk(ast.parse(path.read_text())):
            names = (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            imported |= {name.split('.')[0] for name in names}
    project = pytest.importorskip('tomllib').loads((ROOT / 'pyproject.toml').read_text())['project']
    by_family = {'mmengine', 'mmdet'}
    optional = {'safetensors'}
    assert imported - sys.stdlib_module_names - {'mmyolo_ema'} - by_family - optional == set(project['dependencies'])
