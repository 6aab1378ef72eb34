"""What tests call; what they are given is in conftest.py."""

import importlib.util
import os
import subprocess
import sys
from copy import deepcopy
from functools import cache
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from torch import nn
from yapf.yapflib import yapf_api

from mmyolo_ema import cli

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = dict(train='train', test='test', ema_schedule='schedule', ema_checkpoint='checkpoint', posthoc_ema='posthoc')

# MMEngine lays out a config's text three times for a runner and once for each file: longer than a short training.
yapf_api.FormatCode = lambda text, **options: (text, True)


def forget_runs():
    """Drops what MMEngine keeps for a whole process, such as the visualizer that writes to the first run's folder."""
    for kind in (DefaultScope, MessageHub, MMLogger, Visualizer, DetLocalVisualizer):
        kind._instance_dict.clear()


def assert_equal(one, other, path=''):
    """Compares nested states: every tensor bit for bit."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype, path
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert list(one) == list(other), path
        for key, value in one.items():
            assert_equal(value, other[key], f'{path}.{key}')
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for index, value in enumerate(one):
            assert_equal(value, other[index], f'{path}.{index}')
    else:
        assert one == other, path


def copy_of(module):
    """Copies a module's state."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def weights_of(schedule, updates, length=None):
    """Returns the weights of the updates in an average, by the product formula."""
    mu = np.array([schedule(step) for step in range(updates)])
    weights = np.zeros(length or updates)
    weights[:updates] = mu * np.append(np.cumprod((1 - mu[1:])[::-1])[::-1], 1)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    return weights


def change(model):
    """Gives every tensor of a model new values, as a training step does."""
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


EMA_HOOK = dict(
    type='mmyolo_ema.EMAHook',
    ema_type='mmyolo_ema.ExpMomentumEMA',
    momentum=0.05,
    gamma=40,
    update_buffers=True,
    evaluate_on_origin=True,
    priority=49,
)


@cache
def demo():
    """Returns the demo's config, with a quarter of its weights."""
    cfg = Config.fromfile(ROOT / 'configs' / 'demo' / 'rtmdet_nuclei.py')
    cfg.merge_from_dict(
        {
            'model.backbone.widen_factor': 0.125,
            'model.neck': dict(in_channels=[32, 64, 128], out_channels=32),
            'model.bbox_head': dict(in_channels=32, feat_channels=32),
        }
    )
    return cfg


def small_config(work_dir, **options):
    """Returns that config with 16 training images, no augmentation, 4 epochs of 2 steps and a short ramp."""
    cfg = deepcopy(demo())
    cfg.custom_hooks = [EMA_HOOK]
    cfg.merge_from_dict(
        {
            'work_dir': str(work_dir),
            'experiment_name': work_dir.name,
            'train_dataloader.dataset.indices': 16,
            'train_dataloader.dataset.pipeline': [step for step in cfg.train_pipeline if step.type != 'RandomFlip'],
            'train_cfg.max_epochs': 4,
            'train_cfg.val_interval': 4,
            'param_scheduler.0.end': 4,
            'default_hooks.checkpoint.interval': 2,
            'log_level': 'WARNING',
            **options,
        }
    )
    return cfg


def load_tool(name):
    """Returns the module of a tool, named by its path under tools/."""
    spec = importlib.util.spec_from_file_location(Path(name).name, ROOT / 'tools' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def call_tool(name, *arguments):
    """Calls what a tool does with the given arguments in this process, and returns its exit status."""
    with mock.patch.object(sys, 'argv', [f'{name}.py', *map(str, arguments)]):
        return cli.call(COMMANDS[name]) if name in COMMANDS else load_tool(name).main()


def launch(processes, program, folder, *arguments):
    """Runs a program in several processes."""
    (folder / 'program.py').write_text(program)
    done = subprocess.run(
        [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--standalone',
            f'--nproc-per-node={processes}',
            'program.py',
            *arguments,
        ],
        cwd=folder,
        text=True,
        env=dict(os.environ, OMP_NUM_THREADS='1'),
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
