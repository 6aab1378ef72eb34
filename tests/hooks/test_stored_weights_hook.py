import pytest
import torch

from mmyolo_ema.hooks import RawWeightsHook, StoredWeightsHook


@pytest.mark.parametrize(
    ('hook', 'value'), [(RawWeightsHook(), 0), (StoredWeightsHook('ema'), 1), (StoredWeightsHook('short'), 2)]
)
def test_weights_take_the_place_of_those_that_loaders_take(hook, value):
    loaded = dict(
        state_dict={'weight': torch.ones(1)},
        ema_state_dict={'module.weight': torch.zeros(1), 'steps': 3},
        ema_averages=dict(short={'module.weight': torch.full((1,), 2.0), 'steps': 3}),
    )
    hook.after_load_checkpoint(runner=None, checkpoint=loaded)
    assert loaded['state_dict'] == {'weight': torch.full((1,), value)}


def test_file_without_average_raises():
    with pytest.raises(ValueError, match="it holds one set of weights only, and none called 'raw'"):
        RawWeightsHook().after_load_checkpoint(runner=None, checkpoint=dict(state_dict={}))
