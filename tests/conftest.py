from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader, Runner
from mmengine.visualization import Visualizer
from torch import distributed, nn

# How long an example takes is no matter of right or wrong.
hypothesis.settings.register_profile('untimed', deadline=None)
hypothesis.settings.load_profile('untimed')

ROOT = Path(__file__).resolve().parent.parent


def forget_runs():
    """Drops what MMEngine keeps for a whole process, such as the visualizer that writes to the first run's folder."""
    for kind in (DefaultScope, MessageHub, MMLogger, Visualizer, DetLocalVisualizer):
        kind._instance_dict.clear()


@pytest.fixture(autouse=True)
def _same_start():
    """Each test starts from the same random numbers, without what another one left behind."""
    torch.manual_seed(0)
    forget_runs()
    loaders = dict(CheckpointLoader._schemes)
    yield
    CheckpointLoader._schemes = loaders
    forget_runs()


@pytest.fixture
def fresh_run():
    return forget_runs


def pytest_collection_modifyitems(items):
    if not torch.cuda.is_available():
        for item in items:
            if 'gpu' in item.keywords:
                item.add_marker(pytest.mark.skip(reason='needs a CUDA device'))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    """Expects of a test that is marked as a defect that it fails with that error and text, and with no other."""
    defect = pyfuncitem.get_closest_marker('defect')
    if defect is None:
        return (yield)
    error, text = defect.args
    with pytest.raises(error, match=text):
        yield
    pytest.xfail('the defect')


def compare(one, other, path=''):
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert list(one) == list(other), path
        for key, value in one.items():
            compare(value, other[key], f'{path}.{key}')
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for index, value in enumerate(one):
            compare(value, other[index], f'{path}.{index}')
    else:
        assert one == other, path


@pytest.fixture
def assert_equal():
    """Returns a function that compares nested states: every tensor bit for bit."""
    return compare


def explicit_weights(schedule, updates, length=None):
    mu = np.array([schedule(step) for step in range(updates)])
    weights = np.zeros(length or updates)
    weights[:updates] = mu * np.append(np.cumprod((1 - mu[1:])[::-1])[::-1], 1)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    return weights


@pytest.fixture(scope='session')
def weights_of():
    """Returns a function that gives the weights of the updates in an average, by the product formula."""
    return explicit_weights


@pytest.fixture(scope='session')
def root():
    return ROOT


EMA_HOOK = dict(type='mmyolo_ema.EMAHook', ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.05, gamma=40,
                update_buffers=True, evaluate_on_origin=True, priority=49)


def make_small_config(work_dir, **options):
    """Returns the demo's config with 16 training images, no augmentation, 4 epochs of 2 steps and a short ramp."""
    cfg = Config.fromfile(ROOT / 'configs' / 'demo' / 'rtmdet_nuclei.py')
    cfg.custom_hooks = [EMA_HOOK]
    cfg.merge_from_dict({
        'work_dir': str(work_dir),
        'experiment_name': work_dir.name,
        'train_dataloader.dataset.indices': 16,
        'train_dataloader.dataset.pipeline': [step for step in cfg.train_pipeline if step.type != 'RandomFlip'],
        'train_cfg.max_epochs': 4,
        'train_cfg.val_interval': 4,
        'param_scheduler.0.end': 4,
        'default_hooks.checkpoint.interval': 2,
        'log_level': 'WARNING',
        **options
    })
    return cfg


@pytest.fixture(scope='session')
def small_config():
    """Returns a function that makes the small config for a run in a folder."""
    return make_small_config


@pytest.fixture
def demo_config(tmp_path):
    """Returns a function that makes the small config for a run of the given name."""
    return lambda name='run', **options: make_small_config(tmp_path / name, **options)


@pytest.fixture(scope='session')
def train_once(tmp_path_factory):
    """Returns a function that trains the small config, for several tests, and returns the work directory."""

    def train(**options):
        work_dir = tmp_path_factory.mktemp('trained')
        forget_runs()
        Runner.from_cfg(make_small_config(work_dir, **options)).train()
        return work_dir

    return train


@pytest.fixture(scope='session')
def trained(train_once):
    """Returns the path of a checkpoint that MMEngine's runner saved after 8 steps."""
    return train_once() / 'epoch_4.pth'


@pytest.fixture
def messages(monkeypatch):
    """Collects what is logged to MMEngine's current logger or printed by print_log."""
    collected = []
    logger = MMLogger.get_instance('messages')
    monkeypatch.setattr(MMLogger, 'get_current_instance', classmethod(lambda cls: logger))
    monkeypatch.setattr(logger, 'log', lambda level, message, *args, **kwargs: collected.append(message))
    return collected


class Net(nn.Module):
    """Linear, BatchNorm and one buffer of each kind; small enough to compare by hand."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer('flag', torch.tensor(False))
        self.register_buffer('cache', torch.zeros(2), persistent=False)

    def forward(self, inputs):
        return self.norm(self.linear(inputs))


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def change():
    """Returns a function that gives every tensor of a model new values, as a training step does."""

    def change_(model):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape))
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(torch.rand(buffer.shape))
                elif buffer.dtype == torch.bool:
                    buffer.logical_not_()
                else:
                    buffer.add_(1)
        return model

    return change_


@pytest.fixture
def detector():
    """Returns the demo's RTMDet, which shares its head's convolutions over three levels."""
    cfg = Config.fromfile(ROOT / 'configs' / 'demo' / 'rtmdet_nuclei.py')
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(cfg.model)


@pytest.fixture
def process_group():
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.new_group([0])
    distributed.destroy_process_group()
