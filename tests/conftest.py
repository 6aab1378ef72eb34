from pathlib import Path

import hypothesis
import pytest
import torch
from matplotlib.figure import Figure
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import CheckpointLoader, Runner
from torch import distributed

from tests.helpers import Net, demo, forget_runs, small_config

# A picture is drawn for the tests that ask for `figures` only: each training here would take half as long again.
draw = Figure.savefig
Figure.savefig = lambda figure, path, **options: Path(path).write_text('a picture')

# How long an example takes is no matter of right or wrong.
hypothesis.settings.register_profile('untimed', deadline=None)
hypothesis.settings.load_profile('untimed')


@pytest.fixture(autouse=True)
def _same_start():
    """Each test starts from the same random numbers, without what another one left behind."""
    torch.manual_seed(0)
    forget_runs()
    loaders = dict(CheckpointLoader._schemes)
    yield
    CheckpointLoader._schemes = loaders
    forget_runs()


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


@pytest.fixture
def demo_config(tmp_path):
    """Returns a function that makes the small config for a run of the given name."""
    return lambda name='run', **options: small_config(tmp_path / name, **options)


@pytest.fixture(scope='session')
def train_once(tmp_path_factory):
    """Returns a function that trains the small config, for several tests, and returns the work directory."""

    def train(**options):
        work_dir = tmp_path_factory.mktemp('trained')
        forget_runs()
        Runner.from_cfg(small_config(work_dir, **options)).train()
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


@pytest.fixture
def figures(monkeypatch):
    """Collects the figures that are written to a file."""
    drawn = []

    def collect(figure, path, **options):
        drawn.append(figure)
        draw(figure, path, **options)

    monkeypatch.setattr(Figure, 'savefig', collect)
    return drawn


@pytest.fixture
def net():
    return Net()


@pytest.fixture
def detector():
    """Returns the demo's RTMDet, which shares its head's convolutions over three levels."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        return MODELS.build(demo().model)


@pytest.fixture
def process_group():
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
    yield distributed.new_group([0])
    distributed.destroy_process_group()
