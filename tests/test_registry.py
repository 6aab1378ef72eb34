"""The ways to name the average in a config, and what each of them means."""

import subprocess
import sys

import pytest
from mmdet.models.layers import ExpMomentumEMA as MMDetExpMomentumEMA
from mmengine.hooks import EMAHook
from mmengine.registry import MODELS, DefaultScope

import mmyolo_ema
from mmyolo_ema import ExpMomentumEMA
from mmyolo_ema.registry import MODELS as OUR_MODELS


@pytest.mark.parametrize(
    ('scope', 'name', 'meaning'),
    [
        ('mmdet', 'mmyolo_ema.ExpMomentumEMA', ExpMomentumEMA),
        ('mmdet', ExpMomentumEMA, ExpMomentumEMA),
        ('mmdet', 'ExpMomentumEMA', MMDetExpMomentumEMA),
        ('mmdet', 'mmdet.ExpMomentumEMA', MMDetExpMomentumEMA),
        ('mmyolo_ema', 'ExpMomentumEMA', ExpMomentumEMA),
        ('mmyolo_ema', 'mmyolo_ema.ExpMomentumEMA', ExpMomentumEMA),
        ('mmyolo_ema', 'mmdet.ExpMomentumEMA', MMDetExpMomentumEMA),
        ('mmengine', 'mmyolo_ema.ExpMomentumEMA', ExpMomentumEMA),
        (None, 'mmyolo_ema.ExpMomentumEMA', ExpMomentumEMA),
        (None, ExpMomentumEMA, ExpMomentumEMA),
    ],
)
def test_name_means_this_class(net, scope, name, meaning):
    # As EMAHook builds it.
    hook = EMAHook(ema_type=name, momentum=0.01)
    with DefaultScope.overwrite_default_scope(scope):
        averaged = MODELS.build(hook.ema_cfg, default_args=dict(model=net))
    assert type(averaged) is meaning
    assert averaged.momentum == 0.01


def test_registry_is_a_child_of_mmengines():
    assert (OUR_MODELS.parent, OUR_MODELS.scope) == (MODELS, 'mmyolo_ema')
    assert issubclass(ExpMomentumEMA, MMDetExpMomentumEMA)
    assert mmyolo_ema.ExpMomentumEMA is OUR_MODELS.get('ExpMomentumEMA')


@pytest.mark.slow
def test_prefix_is_enough_in_a_fresh_process():
    program = """
import sys
from mmengine.registry import HOOKS, MODELS, init_default_scope
from torch import nn
init_default_scope('mmdet')
hook = HOOKS.build(dict(type='EMAHook', ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.01))
assert 'mmyolo_ema' not in sys.modules
averaged = MODELS.build(hook.ema_cfg, default_args=dict(model=nn.Linear(1, 1)))
assert type(averaged).__module__ == 'mmyolo_ema.models.exp_momentum_ema'
HOOKS.build(dict(type='mmyolo_ema.StoredWeightsHook', weights='short'))
"""
    subprocess.run([sys.executable, '-c', program], check=True)
