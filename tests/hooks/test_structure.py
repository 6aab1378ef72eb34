"""A model that a hook rebuilds for a validation or test."""

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import MODELS
from torch import nn
from torch.nn.utils import fuse_linear_bn_eval

from mmyolo_ema import checkpoint
from mmyolo_ema.hooks.structure import Structure
from tests.helpers import assert_equal, copy_of
from tests.hooks.toy import toy_hook

Toy = MODELS.get('Toy')


@MODELS.register_module(force=True)
class Deployable(Toy):
    """Puts its first two layers together for deployment, as re-parameterised networks do."""

    deployed = False

    def switch_to_deploy(self):
        for parameter in self.parameters():
            parameter.detach_()
        self.linear = fuse_linear_bn_eval(self.linear.eval(), self.norm.eval())
        del self.norm
        self.norm = nn.Identity()
        self.deployed = True


class Deploy(Hook):
    def __init__(self, points=('before_test_epoch',), priority='NORMAL'):
        self.priority = priority
        for point in points:
            setattr(self, point, lambda runner: runner.model.switch_to_deploy())


@pytest.fixture
def deployable(toy):

    def make(name='run', **options):
        runner = toy(name, model=dict(type='Deployable'), **options)
        runner.register_hook(Deploy())
        return runner

    return make


@pytest.mark.parametrize(
    'hook',
    [
        pytest.param('mmyolo_ema.EMAHook', id='ours'),
        pytest.param(
            'mmengine.EMAHook', id='mmengine', marks=pytest.mark.defect(RuntimeError, 'match the broadcast shape')
        ),
    ],
)
def test_raw_model_is_back_after_a_test_that_fused_it(deployable, hook, tmp_path):
    runner = deployable(hook=dict(toy_hook(), type=hook))
    runner.train()
    raw, validated = copy_of(runner.model), runner.message_hub.get_scalar('val/mean').current()
    tested = runner.test()['mean']
    assert tested == deployable('test', load_from=str(tmp_path / 'run' / 'epoch_2.pth')).test()['mean']
    assert tested == pytest.approx(validated)
    assert not runner.model.deployed
    assert_equal(copy_of(runner.model), raw)
    assert all(parameter.requires_grad for parameter in runner.model.parameters())
    assert not any(module.training for module in runner.model.modules())
    assert runner.val()['mean'] == validated
    runner.save_checkpoint(runner.work_dir, 'after.pth', by_epoch=False)
    before, after = (checkpoint.read(tmp_path / 'run' / name) for name in ('epoch_2.pth', 'after.pth'))
    for part in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert_equal(before[part], after[part], part)


def test_training_goes_on_after_validations_that_fuse_the_model(toy, tmp_path):
    for name, points in (('whole', ()), ('fused', ('before_val_epoch',))):
        runner = toy(name, hook=toy_hook(evaluate_on_origin=True), model=dict(type='Deployable'))
        runner.register_hook(Deploy(points))
        runner.train()
    one, other = (checkpoint.read(tmp_path / name / 'epoch_2.pth') for name in ('whole', 'fused'))
    for part in ('state_dict', 'ema_state_dict', 'optimizer'):
        assert_equal(one[part], other[part], part)


def test_model_that_is_rebuilt_too_early_is_refused(toy):
    runner = toy(model=dict(type='Deployable'))
    runner.train()
    runner.register_hook(Deploy(priority='VERY_HIGH'))
    with pytest.raises(ValueError, match=r'cannot be put into the model: .*must come after the EMAHook'):
        runner.test()


def test_parameters_that_are_added_meanwhile_are_taken_out(net):
    structure = Structure(net)
    net.linear.extra = nn.Parameter(torch.zeros(1))
    net.flag.logical_not_()
    structure.restore()
    assert 'extra' not in dict(net.linear.named_parameters())
    assert bool(net.flag)
