"""One clear error where MMDetection cannot be imported."""

import subprocess
import sys

import pytest
from torch.torch_version import TorchVersion

from mmyolo_ema import environment

ONEDL = {'onedl-mmengine', 'onedl-mmcv', 'onedl-mmdetection'}
OPENMMLAB = {'mmengine', 'mmcv', 'mmdet'}


@pytest.mark.parametrize(
    ('missing', 'installed', 'command'),
    [
        ('mmdet', OPENMMLAB - {'mmdet'}, 'pip install mmdet'),
        ('mmdet', ONEDL - {'onedl-mmdetection'}, 'pip install onedl-mmdetection'),
        ('mmengine', set(), 'pip install onedl-mmengine'),
        ('mmcv', {'mmengine'}, 'MMCV_WITH_OPS=1 pip install --no-build-isolation --no-cache-dir mmcv'),
        ('mmcv._ext', OPENMMLAB, '--no-cache-dir mmcv --force-reinstall --no-deps'),
        ('mmcv._ext', ONEDL, '--no-cache-dir onedl-mmcv --force-reinstall --no-deps'),
    ],
)
def test_advice_names_a_package_of_the_installed_family(monkeypatch, missing, installed, command):
    monkeypatch.setattr(environment, 'installed', installed.intersection)
    assert environment.remedy(ModuleNotFoundError('no', name=missing)).endswith(command)


def test_other_error_keeps_its_own_words():
    assert environment.remedy(ImportError('cannot import name x', name='numpy')) == 'cannot import name x'


def test_torch_that_is_too_old_is_refused(monkeypatch):
    monkeypatch.setattr('torch.__version__', TorchVersion('2.5.1'))
    with pytest.raises(ImportError, match=r'torch 2\.5\.1 is too old: install torch 2\.6 or newer'):
        environment.check_torch()


@pytest.mark.parametrize('version', ['2.6.0a0+ecf3bae40a.nv25.01', '2.6.0+cu124', '2.10.0'])
def test_oldest_torch_and_newer_are_taken(monkeypatch, version):
    monkeypatch.setattr('torch.__version__', TorchVersion(version))
    environment.check_torch()


OF_CONFIG = "from mmengine.registry import HOOKS; HOOKS.build(dict(type='mmyolo_ema.EMAHook'))"


@pytest.mark.slow
@pytest.mark.parametrize(
    ('blocked', 'user', 'said'),
    [
        ('mmcv._ext', OF_CONFIG, 'mmcv is installed without its compiled ops'),
        ('mmdet', OF_CONFIG, 'mmdet is not installed: pip install '),
        ('mmengine', 'from mmyolo_ema import EMAHook', 'mmengine is not installed: pip install '),
    ],
)
def test_import_fails_with_one_error(blocked, user, said):
    program = f"""
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == {blocked!r}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Missing())
{user}
"""
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f'RuntimeError: mmyolo_ema cannot work here: {said}')
