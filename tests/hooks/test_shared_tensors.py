import pytest
from mmdet.models.layers import ExpMomentumEMA as MMDetExpMomentumEMA
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS

from mmyolo_ema.hooks.shared_tensors import advice_on_shared_tensors

Toy = MODELS.get('Toy')


@MODELS.register_module(force=True)
class Tied(Toy):
    """Holds a layer under two names."""

    def __init__(self):
        super().__init__()
        self.again = self.linear


@pytest.mark.parametrize(
    ('ema_type', 'update_buffers', 'warns'),
    [
        ('ExpMomentumEMA', True, True),
        ('ExpMomentumEMA', False, False),
        ('mmyolo_ema.ExpMomentumEMA', True, False),
    ],
)
def test_class_that_averages_shared_tensors_by_name_is_announced(toy, messages, ema_type, update_buffers, warns):
    runner = toy(
        model=dict(type='Tied'),
        default_scope='mmdet',
        hook=dict(type='mmyolo_ema.EMAHook', ema_type=ema_type, momentum=0.1, gamma=2, update_buffers=update_buffers),
    )
    runner.train()
    said = [message for message in messages if 'once for each of their names' in str(message)]
    # At the start, and again at the end, where it can be found.
    assert said == 2 * warns * [
        'EMA: mmdet.ExpMomentumEMA averages shared tensors once for each of their names, so several times in an '
        'update: linear.weight (2 names), linear.bias (2 names). '
        "Write ema_type='mmyolo_ema.ExpMomentumEMA', which averages each once."
    ]


def test_shared_convolutions_of_rtmdet_are_named(detector):
    averaged = MMDetExpMomentumEMA(detector, update_buffers=True)
    said = advice_on_shared_tensors(averaged, detector)
    assert 'bbox_head.cls_convs.0.0.conv.weight (3 names), ' in said
    assert ' others. Write ema_type=' in said


def test_advice_fits_the_class():
    model = Tied()
    said = advice_on_shared_tensors(ExponentialMovingAverage(model, update_buffers=True), model)
    assert said.endswith('and whose momentum ramps, or update_buffers=False.')


def test_model_that_shares_nothing_gets_no_advice():
    model = Toy()
    assert advice_on_shared_tensors(MMDetExpMomentumEMA(model, update_buffers=True), model) == ''
