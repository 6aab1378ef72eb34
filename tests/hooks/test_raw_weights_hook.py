import pytest
import torch

from mmyolo_ema.hooks import RawWeightsHook


def test_raw_weights_take_the_place_of_the_averaged_ones():
    raw, averaged = torch.zeros(1), torch.ones(1)
    loaded = dict(state_dict={'weight': averaged}, ema_state_dict={'module.weight': raw, 'steps': torch.tensor(3)})
    RawWeightsHook().after_load_checkpoint(runner=None, checkpoint=loaded)
    assert loaded['state_dict'] == {'weight': raw}


def test_file_without_average_raises():
    with pytest.raises(ValueError, match='it holds no EMA'):
        RawWeightsHook().after_load_checkpoint(runner=None, checkpoint=dict(state_dict={}))
