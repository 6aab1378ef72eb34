import shutil
import sys
from pathlib import Path

import pytest

from tests.helpers import EMA_HOOK, call_tool, forget_runs


@pytest.fixture
def tool(monkeypatch, tmp_path):
    """Returns a function that runs a tool's main() in an empty folder with the given arguments."""
    monkeypatch.chdir(tmp_path)

    def run(name, *arguments):
        forget_runs()
        return call_tool(name, *arguments)

    return run


@pytest.fixture
def refused(tool, capsys, tmp_path):
    """Returns a function that runs a tool on bad input and returns the one line that it says."""

    def run(name, *arguments):
        before = sorted(tmp_path.rglob('*'))
        with pytest.raises(SystemExit) as stopped:
            sys.exit(tool(name, *arguments))
        assert stopped.value.code == 2
        said = capsys.readouterr().err.strip()
        assert said.startswith('error: ')
        assert '\n' not in said
        assert sorted(tmp_path.rglob('*')) == before, 'nothing may be written'
        return said

    return run


@pytest.fixture
def config_file(demo_config, tmp_path):
    """Returns the path of a config whose run takes seconds."""
    path = tmp_path / 'small.py'
    cfg = demo_config(**{'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 2})
    cfg.pop('work_dir')
    cfg.pop('experiment_name')
    cfg.dump(path)
    return path


@pytest.fixture(scope='session')
def trained_with_further(train_once):
    """Returns the path of a checkpoint with a further average, long, of a run that validates it."""
    hook = {key: value for key, value in EMA_HOOK.items() if key != 'evaluate_on_origin'}
    return (
        train_once(
            **{
                'custom_hooks': [dict(hook, averages=dict(long=dict(momentum=0.2, gamma=8)), evaluate=['ema', 'long'])],
                'train_dataloader.dataset.indices': 48,
                'train_cfg.max_epochs': 8,
                'train_cfg.val_interval': 8,
                'param_scheduler.0.end': 8,
            }
        )
        / 'epoch_8.pth'
    )


@pytest.fixture
def checkpoint_file(trained, tmp_path):
    """Returns the path of a copy of a real checkpoint, in the folder that the tools run in."""
    return Path(shutil.copy(trained, tmp_path / 'epoch_9.pth'))
