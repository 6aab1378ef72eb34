"""The formula, the constructor, and what is the same as in MMDetection's class."""

import pickle
from copy import deepcopy
from itertools import chain

import numpy as np
import pytest
import torch
from mmdet.models.layers import ExpMomentumEMA as Parent
from torch import nn

from mmyolo_ema import ExpMomentumEMA
from mmyolo_ema.schedules import momentum_at
from tests.helpers import change


@pytest.mark.parametrize('interval', [1, 3])
@pytest.mark.parametrize('update_buffers', [True, False])
def test_average_is_the_closed_form_sum_over_all_steps(net, interval, update_buffers):
    momentum, gamma, last = 0.03, 7, 40
    net = net.double()
    averaged = ExpMomentumEMA(net, momentum, gamma, interval, update_buffers=update_buffers)
    history = []
    for _ in range(last + 1):
        averaged.update_parameters(change(net))
        history.append({name: value.clone() for name, value in net.state_dict().items()})
    # w(t) = mu_t * prod_{s > t} (1 - mu_s), in logarithms; no update at s is mu_s = 0, step 0 copies.
    mu = np.array([1] + [momentum_at(t, momentum, gamma) * (t % interval == 0) for t in range(1, last + 1)])
    log_kept = np.append(0, np.cumsum(np.log1p(-mu[1:])))
    weights = mu * np.exp(log_kept[-1] - log_kept)
    names = list(dict(net.named_parameters())) + (['norm.running_mean', 'norm.running_var'] if update_buffers else [])
    for name in names:
        expected = sum(weight * step[name] for weight, step in zip(weights, history))
        torch.testing.assert_close(averaged.module.state_dict()[name], expected, rtol=0, atol=1e-12)


class WithRuleOfItsOwn(ExpMomentumEMA):
    def avg_func(self, averaged_param, source_param, steps):
        averaged_param.copy_(source_param)


def test_rule_that_no_update_would_follow_is_refused(net):
    with pytest.raises(TypeError, match='WithRuleOfItsOwn overrides avg_func, which an update does not call'):
        WithRuleOfItsOwn(net)


def test_constant_model_stays_constant(net):
    averaged = ExpMomentumEMA(net, momentum=0.3, gamma=5, update_buffers=True)
    for _ in range(10):
        averaged.update_parameters(net)
    for name, value in net.state_dict().items():
        assert torch.equal(averaged.module.state_dict()[name], value), name


@pytest.mark.parametrize('update_buffers', [True, False])
def test_first_update_copies(net, update_buffers):
    averaged = ExpMomentumEMA(net, update_buffers=update_buffers)
    averaged.update_parameters(change(net))
    for name, value in net.state_dict().items():
        assert torch.equal(averaged.module.state_dict()[name], value), name
    assert averaged.steps == 1


def test_equals_the_loop_over_lerp_bit_for_bit(detector):
    averaged = ExpMomentumEMA(detector, gamma=3, update_buffers=True)
    expected = deepcopy(detector)
    for step in range(4):
        averaged.update_parameters(change(detector))
        for mine, source in zip(
            chain(expected.parameters(), expected.buffers()), chain(detector.parameters(), detector.buffers())
        ):
            if step == 0 or not source.is_floating_point():
                mine.data.copy_(source)
            else:
                mine.data.lerp_(source, momentum_at(step, 0.0002, 3))
    for name, value in expected.state_dict().items():
        assert torch.equal(averaged.module.state_dict()[name], value), name


@pytest.mark.parametrize('update_buffers', [True, False])
def test_numbers_equal_the_parent_where_it_is_right(update_buffers):
    # No shared tensors, no integers: what is left is where MMDetection's class is right.
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.Linear(2, 2)).double()
    mine = ExpMomentumEMA(model, 0.1, 4, interval=2, update_buffers=update_buffers)
    theirs = Parent(model, 0.1, 4, interval=2, update_buffers=update_buffers)
    for _ in range(7):
        change(model)
        mine.update_parameters(model)
        theirs.update_parameters(model)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(mine.state_dict()[name], value, rtol=0, atol=1e-14)


@pytest.mark.parametrize(('first', 'second'), [(ExpMomentumEMA, Parent), (Parent, ExpMomentumEMA)])
def test_checkpoint_of_either_class_continues_in_the_other(first, second):
    model = nn.Linear(3, 3).double()
    uninterrupted, before = first(model, 0.1, 4), first(model, 0.1, 4)
    for _ in range(3):
        change(model)
        uninterrupted.update_parameters(model)
        before.update_parameters(model)
    after = second(nn.Linear(3, 3).double(), 0.1, 4)
    after.load_state_dict(before.state_dict(), strict=True)
    for _ in range(3):
        change(model)
        uninterrupted.update_parameters(model)
        after.update_parameters(model)
    assert after.steps == 6
    torch.testing.assert_close(after.module.weight, uninterrupted.module.weight, rtol=0, atol=1e-14)


def test_momentum_set_in_mid_run_takes_effect(net):
    averaged = ExpMomentumEMA(net)
    averaged.update_parameters(net)
    averaged.momentum, averaged.gamma = 0.5, 1e-3
    before = averaged.module.linear.weight.clone()
    averaged.update_parameters(change(net))
    torch.testing.assert_close(averaged.module.linear.weight, (before + net.linear.weight) / 2)


def test_step_count_follows_whoever_writes_it(net):
    averaged = ExpMomentumEMA(net, momentum=0.1, gamma=1e-3)
    averaged.update_parameters(net)
    for write in (torch.Tensor.zero_, lambda steps: steps.data.zero_()):
        write(averaged.steps)
        averaged.update_parameters(change(net))
        assert torch.equal(averaged.module.linear.weight, net.linear.weight)
    averaged.load_state_dict({**averaged.state_dict(), 'steps': torch.tensor(0)})
    averaged.update_parameters(change(net))
    assert torch.equal(averaged.module.linear.weight, net.linear.weight)
    assert averaged.steps == 1


def test_average_made_in_inference_mode_can_be_updated(net):
    with torch.inference_mode():
        averaged = ExpMomentumEMA(net)
        averaged.update_parameters(net)
        averaged.update_parameters(net)
    assert averaged.steps == 2


def test_compiled_average_can_be_pickled(net):
    averaged = ExpMomentumEMA(net)
    averaged.compile()
    assert torch.equal(pickle.loads(pickle.dumps(averaged)).module.linear.weight, averaged.module.linear.weight)


def test_attributes_made_up_by_the_model_are_not_shared():

    class MadeUp(nn.Linear):
        def __getattr__(self, name):
            return self if name == 'process_group' else super().__getattr__(name)

    model = MadeUp(1, 1)
    assert ExpMomentumEMA(model).module is not model


def test_forward_is_the_averaged_model(net):
    averaged = ExpMomentumEMA(net).eval()
    inputs = torch.rand(2, 3)
    expected = net.eval()(inputs)
    change(net)
    assert torch.equal(averaged(inputs), expected)
    assert not any(parameter.requires_grad for parameter in averaged.parameters())


def test_training_continues_through_an_update(net):
    averaged = ExpMomentumEMA(net)
    loss = net(torch.rand(4, 3)).sum()
    averaged.update_parameters(net)
    loss.backward()
    assert net.linear.weight.grad is not None


@pytest.mark.parametrize(
    ('options', 'error', 'message'),
    [
        (dict(momentum=0.0), AssertionError, r'momentum must be in range \(0.0, 1.0\)but got 0.0'),
        (dict(momentum=1), AssertionError, 'but got 1'),
        (dict(momentum=float('nan')), AssertionError, 'but got nan'),
        (dict(decay=0.9998), TypeError, "argument 'decay'; momentum is 1 - decay: write momentum=0.0002"),
        (dict(gama=25), TypeError, "unexpected keyword argument 'gama'; it takes model, momentum, gamma, "),
        (dict(momentum='0.1'), TypeError, "momentum must be a number, but got '0.1'"),
        (dict(gamma=0), AssertionError, 'gamma must be greater than 0, but got 0'),
        (dict(gamma=-1), AssertionError, 'gamma must be greater than 0, but got -1'),
        (dict(gamma=float('inf')), ValueError, 'gamma must be finite, but got inf'),
        (dict(gamma=None), TypeError, 'gamma must be a number, but got None'),
        (dict(interval=0), ValueError, 'interval must be at least 1, but got 0'),
        (dict(interval=1.5), TypeError, 'interval must be an integer, but got 1.5'),
        (dict(device='nowhere'), ValueError, "device='nowhere' cannot hold the average: "),
        (dict(update_buffers='False'), TypeError, "update_buffers must be True or False, but got 'False'"),
    ],
)
def test_wrong_argument_raises_with_its_value(net, options, error, message):
    with pytest.raises(error, match=message):
        ExpMomentumEMA(net, **options)


def test_model_that_is_no_module_raises():
    with pytest.raises(TypeError, match=r"model must be an nn.Module, but got dict: \{'type': 'RTMDet'\}"):
        ExpMomentumEMA(dict(type='RTMDet'))


def test_model_that_has_no_shapes_yet_raises():
    with pytest.raises(ValueError, match=r'parameters without a shape yet, such as 0\.weight: pass one batch'):
        ExpMomentumEMA(nn.Sequential(nn.LazyLinear(4)))


def test_large_momentum_warns_as_in_the_parent(net, messages):
    ExpMomentumEMA(net, momentum=0.9)
    assert any('momentum' in message and '0.9' in message for message in messages)
