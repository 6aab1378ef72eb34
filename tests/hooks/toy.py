"""A regression that trains in a blink, with what a runner needs for it."""

import json
from pathlib import Path

import torch
from mmengine.dist import is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook as UpstreamHook
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.registry import METRICS, MODELS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from mmyolo_ema.models.tensor_references import unwrap

ITERATIONS = 6


@MODELS.register_module(force=True)
class Toy(BaseModel):
    """A small regression with a BatchNorm; the loss is its mean output, so that it goes on changing."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.out = nn.Linear(4, 1)

    def forward(self, inputs, mode='tensor'):
        output = self.out(self.dropout(self.norm(self.linear(torch.stack(inputs)))))
        return dict(loss=output.square().mean() + output.mean()) if mode == 'loss' else list(output)


class Numbers(Dataset):
    """Random inputs, the same in each run."""

    def __init__(self, length, seed=0):
        self.inputs = torch.rand(length, 3, generator=torch.Generator().manual_seed(seed))

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return dict(inputs=self.inputs[index])


@METRICS.register_module(force=True)
class Mean(BaseMetric):
    """The mean of what the model puts out."""

    def process(self, data_batch, data_samples):
        self.results.extend(sample.item() for sample in data_samples)

    def compute_metrics(self, results):
        return dict(mean=sum(results) / len(results))


class Overflow(Hook):
    """Puts NaN into a weight of one process in the fourth iteration, and takes it out in the next."""

    priority = 'VERY_HIGH'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 3 and is_main_process():
            self.bias = unwrap(runner.model).out.bias.data
            self.before = self.bias.clone()
            self.bias.fill_(float('nan'))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 4 and is_main_process():
            self.bias.copy_(self.before)


def loader(length, batch_size=4, seed=0):
    return dict(
        dataset=Numbers(length, seed),
        batch_size=batch_size,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
    )


def toy_hook(**options):
    return dict(
        type='mmyolo_ema.EMAHook',
        ema_type='mmyolo_ema.ExpMomentumEMA',
        momentum=0.1,
        gamma=2,
        update_buffers=True,
        priority=49,
        **options,
    )


def toy_runner(work_dir, hook=None, optim_wrapper=None, by_epoch=True, kind=Runner, **options):
    """Returns a runner: two epochs of six iterations, validated after each."""
    settings = dict(
        model=dict(type='Toy'),
        work_dir=str(work_dir),
        experiment_name=work_dir.name,
        train_dataloader=loader(4 * ITERATIONS),
        val_dataloader=loader(8, seed=1),
        test_dataloader=loader(8, seed=1),
        val_evaluator=dict(type='Mean'),
        test_evaluator=dict(type='Mean'),
        train_cfg=dict(by_epoch=True, max_epochs=2)
        if by_epoch
        else dict(by_epoch=False, max_iters=2 * ITERATIONS, val_interval=ITERATIONS),
        val_cfg=dict(),
        test_cfg=dict(),
        optim_wrapper=dict(dict(optimizer=dict(type='SGD', lr=0.1)), **(optim_wrapper or {})),
        param_scheduler=dict(type='ExponentialLR', gamma=0.9),
        default_hooks=dict(logger=dict(type='LoggerHook', interval=1)),
        custom_hooks=[toy_hook() if hook is None else hook],
        randomness=dict(seed=0),
        default_scope='mmengine',
        log_level='WARNING',
    )
    return kind(**{**settings, **options})


def average_of(runner):
    """Returns a runner's EMAHook, ours or MMEngine's."""
    return next(hook for hook in runner.hooks if isinstance(hook, UpstreamHook))


def scalars(runner):
    """Reads what a runner's log holds, line by line."""
    return list(map(json.loads, Path(runner.log_dir, 'vis_data', 'scalars.json').read_text().splitlines()))


class Bias:
    """Measures one number of the weights."""

    config = 'a config'

    def measure(self, weights, name):
        return dict(bias=float(weights['out.bias']))

    def exact(self, name, metric, measured):
        return measured, None
