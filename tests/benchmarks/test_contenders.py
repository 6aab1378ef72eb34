"""The limits move what the classes move, no more and no less."""

import copy

import torch

from benchmarks.contenders import averaged_pairs, bare_update, limit_update
from tests.helpers import change


def test_bare_update_moves_each_distinct_tensor_once(detector):
    average = copy.deepcopy(detector)
    before = copy.deepcopy(average).state_dict()
    change(detector)
    bare_update(averaged_pairs(average, detector, update_buffers=True), 0.25)()
    for name, value in average.state_dict().items():
        source = detector.state_dict()[name]
        expected = torch.lerp(before[name], source, 0.25) if value.is_floating_point() else before[name]
        assert torch.equal(value, expected), name


def test_buffers_are_left_out_without_update_buffers(net):
    average = copy.deepcopy(net)
    assert len(averaged_pairs(average, net, update_buffers=False)) == 4
    assert len(averaged_pairs(average, net, update_buffers=True)) == 6


def test_limit_moves_as_many_weights_in_one_tensor(detector):
    pairs = averaged_pairs(copy.deepcopy(detector), detector, update_buffers=True)
    update, source = limit_update(pairs, 0.5)
    assert source.numel() == sum(tensor.numel() for _, tensor in pairs)
    moved = update()
    source.add_(2)
    assert torch.equal(update(), moved)
    torch.testing.assert_close(moved.mean(), source.mean() - 1)
