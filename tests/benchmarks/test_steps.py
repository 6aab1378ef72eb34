import copy

import pytest
import torch

from benchmarks.contenders import OURS, makers
from benchmarks.detectors import build_detector
from benchmarks.steps import BARE, LIMIT, measure_steps


@pytest.mark.slow
@pytest.mark.any_family
@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
@pytest.mark.parametrize('update_buffers', [True, False])
def test_everything_is_measured_for_every_class(detector, device, update_buffers):
    before = copy.deepcopy(detector.state_dict())
    costs = measure_steps('demo', detector, update_buffers, rounds=1, device=device)
    assert list(costs.costs) == [*makers(update_buffers), BARE, LIMIT]
    for name, cost in costs.costs.items():
        assert cost.step.median > 0
        assert (cost.host is None) == (cost.gpu is None) == (device == 'cpu')
        is_measured = update_buffers and name not in (BARE, LIMIT)
        assert (cost.create is not None) == (cost.average_memory is not None) == is_measured
        assert (cost.swap is not None) == (is_measured and name in (OURS, 'mmdet', 'mmengine'))
        assert (cost.check is not None) == (is_measured and name == OURS)
    weights = sum(parameter.numel() for parameter in detector.parameters())
    statistics = sum(buffer.numel() for name, buffer in detector.named_buffers() if '.running_' in name)
    assert costs.weights == weights + update_buffers * statistics
    assert not update_buffers or costs.costs[OURS].average_memory.held >= 4 * costs.weights
    assert costs.ratio(LIMIT, to=LIMIT) == 1
    assert all(torch.equal(value, before[name]) for name, value in detector.state_dict().items())


def test_detector_without_a_name_or_a_config_is_refused():
    with pytest.raises(ValueError, match=r'resnet is no config, and none of rtmdet-tiny, yolox-s'):
        build_detector('resnet')


@pytest.mark.parametrize('name', ['rtmdet-tiny', 'yolox-s', 'faster-rcnn-r50'])
def test_named_detectors_are_built_from_the_configs_of_mmdetection(name):
    modules = [type(module) for module in build_detector(name).modules()]
    assert len(modules) > 100
    assert torch.nn.SyncBatchNorm not in modules
