"""An average of half-precision weights that is kept in float32."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmyolo_ema import ExpMomentumEMA
from mmyolo_ema.hooks.weight_swap import WeightSwap
from mmyolo_ema.models import tensor_plan
from mmyolo_ema.schedules import Ramp
from tests.helpers import change, copy_of, weights_of

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize('half', HALF, ids=str)
@pytest.mark.parametrize('size', [1, 4 * 2**20], ids=['many parts', 'one part'])
def test_average_of_half_precision_is_the_closed_form_in_float32(net, half, size, monkeypatch):
    monkeypatch.setattr(tensor_plan, '_CACHED_BYTES', size)
    net.to(half)
    averaged = ExpMomentumEMA(net, 0.001, 20, update_buffers=True, dtype='float32')
    history = []
    for _ in range(50):
        averaged.update_parameters(change(net))
        history.append({name: value.double() for name, value in copy_of(net).items()})
    weights = weights_of(Ramp(0.001, 20), 50)
    for name in (*dict(net.named_parameters()), 'norm.running_mean', 'norm.running_var'):
        average = averaged.module.state_dict()[name]
        assert average.dtype == torch.float32
        expected = sum(weight * step[name] for weight, step in zip(weights, history))
        torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-6)
    assert averaged.module.cache.dtype == net.cache.dtype == half, 'what is copied keeps its dtype'


def test_average_is_that_of_the_same_weights_in_float32(net):
    averaged = ExpMomentumEMA(net.bfloat16(), 0.1, 3, dtype=torch.float32)
    single = nn.ModuleDict(dict(linear=nn.Linear(3, 4), norm=nn.BatchNorm1d(4)))
    plain = ExpMomentumEMA(single, 0.1, 3)
    for _ in range(5):
        single.load_state_dict({name: value for name, value in change(net).state_dict().items() if name != 'flag'})
        averaged.update_parameters(net)
        plain.update_parameters(single)
    for name, parameter in plain.module.named_parameters():
        assert torch.equal(averaged.module.get_parameter(name), parameter), name


class Allocations(TorchDispatchMode):
    """Notes what makes new tensors."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # What is in place ends in an underscore; the other one reads the count of updates.
        if not func.overloadpacket.__name__.endswith('_') and func is not torch.ops.aten._local_scalar_dense.default:
            self.made.append(str(func))
        return func(*args, **(kwargs or {}))


def test_step_converts_in_memory_that_it_keeps(net):
    averaged = ExpMomentumEMA(net.bfloat16(), 0.1, 3, dtype='float32')
    for _ in range(2):
        averaged.update_parameters(change(net))
    with Allocations() as allocations:
        averaged.update_parameters(net)
    assert allocations.made == []


def test_warning_about_coarse_weights_names_the_option_and_ends_with_it(net, messages):
    net.bfloat16()
    ExpMomentumEMA(net).update_parameters(net)
    assert any("Set dtype='float32' for the average" in str(message) for message in messages)
    messages.clear()
    ExpMomentumEMA(net, dtype='float32').update_parameters(net)
    assert not any('too coarse' in str(message) for message in messages)


def test_validated_weights_are_in_the_dtype_of_the_model(net):
    averaged = ExpMomentumEMA(net.bfloat16(), 0.1, 3, dtype='float32')
    for _ in range(3):
        averaged.update_parameters(change(net))
    before = copy_of(net)
    swap = WeightSwap(averaged.module, net)
    swap.swap_in()
    assert net.linear.weight.dtype == torch.bfloat16
    assert torch.equal(net.linear.weight, averaged.module.linear.weight.bfloat16())
    swap.swap_out()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_frozen_weight_keeps_the_models_dtype_until_it_is_trained(net):
    net.bfloat16().linear.requires_grad_(False)
    averaged = ExpMomentumEMA(net, 0.1, 1e-3, dtype='float32')
    averaged.update_parameters(net)
    assert averaged.module.linear.weight.data_ptr() == net.linear.weight.data_ptr()
    state = dict(averaged.state_dict(), **{'module.linear.weight': net.linear.weight.float() + 1e-4})
    averaged.load_state_dict(state)
    assert torch.equal(averaged.module.linear.weight, state['module.linear.weight']), 'loaded in full precision'
    net.linear.requires_grad_(True)
    start = averaged.module.linear.weight.clone()
    averaged.update_parameters(net)
    torch.testing.assert_close(averaged.module.linear.weight, start.lerp(net.linear.weight.detach().float(), 0.1))


def test_weight_that_is_unfrozen_is_averaged_in_full_precision(net):
    net.bfloat16().linear.requires_grad_(False)
    averaged = ExpMomentumEMA(net, 0.1, 1e-3, dtype='float32')
    averaged.update_parameters(net)
    start = net.linear.weight.float()
    net.linear.requires_grad_(True)
    optimizer = torch.optim.SGD(net.linear.parameters(), lr=0.1)
    net.linear.weight.sum().backward()
    optimizer.step()
    averaged.update_parameters(net)
    assert torch.equal(averaged.module.linear.weight, start.lerp(net.linear.weight.detach().float(), 0.1))


def test_weights_in_full_precision_are_left_as_they_are(net):
    averaged = ExpMomentumEMA(net.double(), dtype='float32')
    averaged.update_parameters(net)
    assert averaged.module.linear.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(dtype='bfloat16'), "dtype must be one of 'float32', 'float64', but got 'bfloat16'"),
        (dict(dtype=32), "dtype must be one of 'float32', 'float64', but got 32"),
        (dict(dtype='float32', save_dtype='int8'), "save_dtype must be one of 'float16', .* but got 'int8'"),
        (dict(save_dtype='float32'), "save_dtype='float32' is for an average that is kept in another dtype"),
    ],
)
def test_wrong_dtype_is_refused_with_its_value(net, options, message):
    with pytest.raises(ValueError, match=message):
        ExpMomentumEMA(net, **options)
