"""Models whose buffers change while they train."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from torch import nn
from torch.ao.quantization import get_default_qat_qconfig, prepare_qat

from mmyolo_ema.schedules import momentum_at
from tests.helpers import assert_equal
from tests.hooks.toy import average_of, toy_hook

Toy = MODELS.get('Toy')


@MODELS.register_module(force=True)
class Tabled(Toy):
    """Builds a longer table when a longer input comes, and remembers its length elsewhere."""

    def __init__(self, persistent=False):
        super().__init__()
        self.persistent, self.length, self.built = persistent, 1, 1
        self.register_buffer('table', torch.zeros(1), persistent=persistent)

    def forward(self, inputs, mode='tensor'):
        if self.built < self.length:
            self.register_buffer('table', torch.arange(float(self.length)), persistent=self.persistent)
            self.built = self.length
        assert self.table[self.length - 1] == self.length - 1
        return super().forward(inputs, mode)


class LongerInputs(Hook):
    """Longer inputs at iterations 3 and 8, and in the validations after iterations 12 and 18."""

    priority = 'HIGHEST'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter in (3, 8):
            runner.model.length += 2

    def before_val_epoch(self, runner):
        runner.model.length += 2


class Formula(Hook):
    """Averages the parameters in float64, by the formula."""

    priority = 'LOWEST'

    def before_train(self, runner):
        self.averaged = None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        new = {name: value.detach().double() for name, value in runner.model.named_parameters()}
        if self.averaged is None:
            self.averaged = new
        momentum = momentum_at(runner.iter, momentum=0.1, gamma=2)
        self.averaged = {name: value.lerp(new[name], momentum) for name, value in self.averaged.items()}

    def assert_equals(self, module):
        for name, parameter in module.named_parameters():
            torch.testing.assert_close(parameter.double(), self.averaged[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(('persistent', 'both'), [(False, False), (True, True)])
def test_table_may_grow_in_training_and_in_validation(toy, persistent, both):
    runner = toy(
        hook=toy_hook(evaluate_on_origin=both),
        model=dict(type='Tabled', persistent=persistent),
        train_cfg=dict(by_epoch=True, max_epochs=3, val_interval=2),
    )
    formula, tables = Formula(), []

    class Remember(Hook):
        def after_val_epoch(self, runner, metrics=None):
            tables.append(runner.model.table.clone())
            assert runner.model.table.data_ptr() != average_of(runner).ema_model.module.table.data_ptr()

    for hook in (LongerInputs(), formula, Remember()):
        runner.register_hook(hook)
    runner.train()
    average = average_of(runner).ema_model
    assert average.steps == 18
    assert [len(table) for table in tables] == [7, 9]
    assert torch.equal(tables[1], torch.arange(9.0))
    assert torch.equal(average.module.table, torch.arange(7.0))
    formula.assert_equals(average.module)


@MODELS.register_module(force=True)
class Quantized(Toy):
    """A convolution that is trained as if it were quantized, a channel at a time."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 1)
        self.conv.qconfig = get_default_qat_qconfig('fbgemm')
        prepare_qat(self.train(), inplace=True)

    def forward(self, inputs, mode='tensor'):
        return super().forward(list(self.conv(torch.stack(inputs)[:, None, None]).sum((1, 2))), mode)


def test_observers_of_quantization_follow_the_model_and_resume(toy, tmp_path):
    options = dict(model=dict(type='Quantized'), default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)))
    whole = toy('whole', train_cfg=dict(by_epoch=True, max_epochs=2), **options)
    whole.train()
    average = average_of(whole).ema_model
    buffers = dict(whole.model.named_buffers())
    for name, value in average.module.named_buffers():
        if 'norm' not in name:
            assert torch.equal(value, buffers[name]), name
    assert average.module.conv.weight_fake_quant.scale.shape == (3,)
    resumed = toy('resumed', load_from=str(tmp_path / 'whole' / 'epoch_1.pth'), resume=True, **options)
    resumed.train()
    assert_equal(average_of(resumed).ema_model.state_dict(), average.state_dict())
    assert_equal(resumed.model.state_dict(), whole.model.state_dict())
