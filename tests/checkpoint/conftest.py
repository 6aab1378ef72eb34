import pytest
import torch
from mmdet.models.layers import ExpMomentumEMA as MMDetExpMomentumEMA
from mmengine.registry import MODELS
from mmengine.runner import Runner


@pytest.fixture
def frozen_statistics(monkeypatch):
    """Registers an average whose BatchNorm statistics stop after the first update, as the YOLO toolbox's do."""

    class FrozenStatistics(MMDetExpMomentumEMA):
        def update_parameters(self, model):
            kept = [buffer.clone() for buffer in self.module.buffers()]
            super().update_parameters(model)
            if self.steps > 1:
                for buffer, value in zip(self.module.buffers(), kept):
                    buffer.copy_(value)

    monkeypatch.setitem(MODELS._module_dict, 'FrozenStatistics', FrozenStatistics)


@pytest.fixture
def train(demo_config):
    """Returns a function that trains 4 steps with MMEngine's EMAHook, and returns the file that it saved."""

    def run(**average):
        hook = dict(dict(type='EMAHook', momentum=0.05, gamma=4), **average)
        cfg = demo_config(**{'train_cfg.max_epochs': 2, 'train_cfg.val_interval': 5, 'custom_hooks': [hook]})
        runner = Runner.from_cfg(cfg)
        runner.train()
        return runner.work_dir + '/epoch_2.pth'

    return run


@pytest.fixture(scope='session')
def large(tmp_path_factory):
    """Returns the path of a file with two sets of 160 MB and an optimizer's state, and the size of a set."""

    def weights():
        return {f'backbone.{index}.weight': torch.rand(2, 10**6) for index in range(20)}

    path = tmp_path_factory.mktemp('large') / 'large.pth'
    stored = dict(steps=torch.tensor(1), **{f'module.{name}': value for name, value in weights().items()})
    torch.save(dict(state_dict=weights(), ema_state_dict=stored, optimizer=weights()), path)
    return path, 160 * 10**6
