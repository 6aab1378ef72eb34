"""Layers that change their weights when the model goes from training to evaluation, and back."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from torch import nn

from mmyolo_ema import checkpoint
from tests.helpers import assert_equal
from tests.hooks.toy import average_of, toy_hook

Toy = MODELS.get('Toy')


class Merging(nn.Linear):
    """A frozen weight with a trained low-rank part, which is merged into it for evaluation, as loralib's layers do."""

    def __init__(self, inputs, outputs, rank=2):
        super().__init__(inputs, outputs)
        self.weight.requires_grad = False
        self.down = nn.Parameter(torch.randn(rank, inputs) / 2)
        self.up = nn.Parameter(torch.randn(outputs, rank) / 2)
        self.merged = False

    def train(self, mode=True):
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * self.up @ self.down
            self.merged = not mode
        return self

    def forward(self, inputs):
        weight = self.weight if self.merged else self.weight + self.up @ self.down
        return nn.functional.linear(inputs, weight, self.bias)


@MODELS.register_module(force=True)
class LowRank(Toy):
    def __init__(self):
        super().__init__()
        self.linear = Merging(3, 4)


@MODELS.register_module(force=True)
class Cached(Toy):
    """Keeps what it worked out of its weights for as long as it is in evaluation."""

    def train(self, mode=True):
        super().train(mode)
        self.scale = None
        return self

    def eval(self):
        return self if not self.training else super().eval()

    def forward(self, inputs, mode='tensor'):
        if self.training:
            return super().forward(inputs, mode)
        if self.scale is None:
            self.scale = self.out.weight.detach().sum().clone()
        return [self.scale * output for output in super().forward(inputs)]


@pytest.mark.parametrize(
    'hook_type',
    [
        'mmyolo_ema.EMAHook',
        pytest.param('mmengine.EMAHook', marks=pytest.mark.defect(AssertionError, 'Tensor-likes are not close')),
    ],
)
def test_weights_that_are_merged_for_evaluation_are_split_again(toy, hook_type):
    runner = toy(model=dict(type='LowRank'), hook=dict(toy_hook(), type=hook_type))
    frozen = runner.model.linear.weight.detach().clone()
    runner.train()
    runner.model.train()
    torch.testing.assert_close(runner.model.linear.weight.detach(), frozen)
    torch.testing.assert_close(average_of(runner).ema_model.module.linear.weight, frozen)


@pytest.mark.parametrize('model', ['LowRank', 'Cached'])
def test_average_is_validated_as_if_the_raw_weights_had_not_been(toy, model):
    measured = []
    for both in (False, True):
        runner = toy(f'both-{both}', model=dict(type=model), hook=toy_hook(evaluate_on_origin=both))
        runner.train()
        measured.append(runner.message_hub.get_scalar('val/mean').current())
    assert measured[0] == pytest.approx(measured[1], rel=1e-6)


def test_model_is_left_in_evaluation_after_a_test(toy):
    runner = toy(model=dict(type='LowRank'))
    runner.train()
    runner.test()
    assert not runner.model.training
    assert runner.model.linear.merged


class InHalfPrecision(Hook):
    """Converts the model for a validation, and back."""

    def before_val_epoch(self, runner):
        runner.model.half()

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        data_batch['inputs'] = [image.half() for image in data_batch['inputs']]

    def after_val_epoch(self, runner, metrics=None):
        runner.model.float()


def test_validation_in_half_precision_changes_no_weights(toy, tmp_path):
    for name in ('usual', 'half'):
        runner = toy(name)
        if name == 'half':
            runner.register_hook(InHalfPrecision())
        runner.train()
    one, other = (checkpoint.read(tmp_path / name / 'epoch_2.pth') for name in ('usual', 'half'))
    for part in ('state_dict', 'ema_state_dict'):
        assert_equal(one[part], other[part], part)
