import copy

import pytest
import torch
from torch import nn

from mmyolo_ema import ExpMomentumEMA
from mmyolo_ema.hooks.weight_swap import WeightSwap
from tests.helpers import change


def state_of(model):
    return {name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]}


def assert_same(one, other):
    assert all(torch.equal(one[name], other[name]) for name in other), one.keys()


@pytest.fixture
def averaged(net):
    return change(copy.deepcopy(net)).requires_grad_(False)


def test_model_has_the_averaged_weights_meanwhile(net, averaged):
    raw, average = state_of(net), state_of(averaged)
    swap = WeightSwap(averaged, net)
    swap.swap_in()
    assert_same(state_of(net), average)
    swap.swap_out()
    assert_same(state_of(net), raw)
    assert_same(state_of(averaged), average)
    assert net.linear.weight.requires_grad


def test_parameters_are_not_copied(net, averaged):
    own = net.linear.weight.data_ptr()
    swap = WeightSwap(averaged, net)
    swap.swap_in()
    assert net.linear.weight.data_ptr() == averaged.linear.weight.data_ptr()
    swap.swap_out()
    assert net.linear.weight.data_ptr() == own


def test_average_in_another_dtype_is_converted(net, averaged):
    swap = WeightSwap(averaged.double(), net)
    swap.swap_in()
    assert net.linear.weight.dtype == torch.float32
    assert torch.equal(net.linear.weight, averaged.linear.weight.float())
    swap.swap_out()
    assert averaged.linear.weight.dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.parametrize(('model_on', 'average_on'), [('cuda', 'cpu'), ('cuda', 'cuda')])
def test_average_on_another_device_is_lent(net, averaged, model_on, average_on):
    raw, average = state_of(net.to(model_on)), state_of(averaged.to(average_on))
    swap = WeightSwap(averaged, net)
    swap.swap_in()
    assert net.linear.weight.device.type == model_on
    assert_same(
        {name: value.cpu() for name, value in state_of(net).items()},
        {name: value.cpu() for name, value in average.items()},
    )
    swap.swap_out()
    assert_same(state_of(net), raw)


def test_interrupted_exchange_is_undone(net, averaged):
    raw = state_of(net)
    swap = WeightSwap(averaged, net)
    # What comes last in the exchange raises, as Ctrl-C may there.
    swap._pairs[-1] = (*swap._pairs[-1][:3], None)
    with pytest.raises(AttributeError):
        swap.swap_in()
    swap.swap_out()
    assert_same(state_of(net), raw)


def test_paused_swap_shows_the_raw_weights(net, averaged):
    raw, average = state_of(net), state_of(averaged)
    swap = WeightSwap(averaged, net)
    swap.swap_in()
    with swap.paused():
        assert_same(state_of(net), raw)
    assert_same(state_of(net), average)


def test_shared_tensors_are_swapped_together():
    model = nn.Module()
    model.first, model.second = nn.Linear(2, 2), nn.Linear(2, 2)
    model.second.weight = model.first.weight
    averaged = ExpMomentumEMA(model, momentum=0.1, gamma=1, update_buffers=True)
    averaged.update_parameters(model)
    averaged.update_parameters(change(model))
    swap = WeightSwap(averaged.module, model)
    swap.swap_in()
    assert model.second.weight is model.first.weight
    assert torch.equal(model.second.weight, averaged.module.first.weight)
    swap.swap_out()
    assert model.second.weight is model.first.weight
    assert not torch.equal(model.second.weight, averaged.module.first.weight)


def test_tensors_that_are_replaced_meanwhile_come_back(net, averaged):
    raw, weight = state_of(net), net.linear.weight
    swap = WeightSwap(averaged, net)
    swap.swap_in()
    net.norm.running_mean = torch.full((4,), 7.0)
    net.linear.weight = nn.Parameter(net.linear.weight.detach().clone())
    swap.swap_out()
    assert_same(state_of(net), raw)
    assert net.linear.weight is weight


def test_what_is_written_to_buffers_meanwhile_is_forgotten(net, averaged):
    raw, average = state_of(net), state_of(averaged)
    swap = WeightSwap(averaged, net)
    swap.swap_in()
    net.norm.running_mean.fill_(7)
    net.cache.resize_(5)
    swap.swap_out()
    assert_same(state_of(net), raw)
    assert_same(state_of(averaged), average)


@pytest.mark.parametrize('lent_length', [2, 3])
def test_buffer_that_grows_meanwhile_is_the_models(net, averaged, lent_length):
    averaged.cache = torch.zeros(lent_length)
    swap = WeightSwap(averaged, net)
    swap.swap_in()
    assert net.cache.shape == (2,)
    net.cache = torch.arange(4.0)
    with swap.paused():
        assert torch.equal(net.cache, torch.arange(4.0))
    assert torch.equal(net.cache, torch.arange(4.0))
    swap.swap_out()
    assert torch.equal(net.cache, torch.arange(4.0))
    assert averaged.cache.shape == (lent_length,)


def test_plan_of_the_average_survives_a_swap(net):
    averaged = ExpMomentumEMA(net)
    averaged.update_parameters(change(net))
    plan = averaged._plan
    swap = WeightSwap(averaged.module, net)
    swap.swap_in()
    swap.swap_out()
    averaged.update_parameters(change(net))
    assert averaged._plan is plan


def test_another_model_is_refused_by_name(net, averaged):
    averaged.extra = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r'extra\.weight'):
        WeightSwap(averaged, net)
