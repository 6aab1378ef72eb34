import pytest
import torch
from mmengine.hooks import Hook

from mmyolo_ema.hooks.finite_check import FiniteCheck

BAD = [float('nan'), float('inf'), -float('inf')]


@pytest.fixture
def check(net):
    return FiniteCheck(net, net)


def test_a_finite_model_passes(check):
    assert check.passes()
    assert check.names() == []


@pytest.mark.parametrize('bad', BAD)
@pytest.mark.parametrize('name', ['linear.weight', 'norm.bias', 'norm.running_var'])
def test_one_bad_number_is_found_and_named(net, check, bad, name):
    net.state_dict()[name].view(-1)[1] = bad
    assert not check.passes()
    assert check.names() == [name]


def test_numbers_too_large_for_a_norm_pass(net, check):
    with torch.no_grad():
        net.linear.weight.fill_(3e38)
    assert check.passes()


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_looked_at(net, dtype):
    net.linear.to(dtype)
    check = FiniteCheck(net, net)
    assert check.passes()
    net.linear.bias.data[0] = float('nan')
    assert not check.passes()


def test_buffers_that_no_checkpoint_holds_are_not_looked_at(net, check):
    net.cache.fill_(float('inf'))
    assert check.passes()


def test_a_mask_with_infinities_is_not_looked_at(net):
    net.register_buffer('mask', torch.tensor([0., -float('inf')]))
    check = FiniteCheck(net, net)
    assert check.passes()
    net.linear.bias.data[0] = float('nan')
    assert check.names() == ['linear.bias']


def test_kinds_that_torch_cannot_look_at_are_left_out(net):
    net.register_buffer('sparse', torch.eye(3).to_sparse())
    net.register_buffer('tiny', torch.zeros(2).to(torch.float8_e4m3fn))
    net.numbers = torch.nn.Parameter(torch.arange(3), requires_grad=False)
    assert FiniteCheck(net, net).passes()


def test_replaced_parameter_is_looked_at(net, check):
    net.linear.weight = torch.nn.Parameter(torch.full((4, 3), float('nan')))
    assert not check.passes()


class Poison(Hook):
    """Leaves NaN in the model after each step but the first, until the next iteration."""

    priority = 'HIGHEST'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter > 1:
            runner.model.out.bias.data.copy_(self.good)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        bias = runner.model.out.bias
        self.good = bias.detach().clone()
        if runner.iter > 0:
            bias.data.fill_(float('nan'))


def test_bad_steps_are_left_out_counted_and_announced_seldom(toy, average_of, messages):
    runner = toy()
    runner.register_hook(Poison())
    runner.train()
    assert average_of(runner).skipped == 11
    assert average_of(runner).ema_model.steps == 1
    said = [message for message in messages if 'NaN or infinity' in str(message)]
    assert len(said) == 2
    assert 'in out.bias (the 1. such step of the run)' in said[0]
    assert 'the 10. such step' in said[1]


def test_what_the_constructor_leaves_undefined_is_looked_at(toy, average_of, monkeypatch):
    runner = toy()
    with torch.no_grad():
        runner.model.out.bias.fill_(float('nan'))  # as torch.empty() may
    monkeypatch.setattr(runner.model, 'init_weights', lambda: torch.nn.init.zeros_(runner.model.out.bias))
    runner.register_hook(Poison())
    runner.train()
    assert average_of(runner).skipped == 11


def test_check_can_be_turned_off(toy, hook_config, average_of):
    runner = toy(hook=hook_config(skip_nonfinite=False), optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e30)))
    runner.train()
    assert average_of(runner).ema_model.steps == 12
    assert not all(value.isfinite().all() for value in average_of(runner).ema_model.state_dict().values())


@pytest.mark.gpu
def test_check_waits_for_the_gpu_once(net):
    check = FiniteCheck(net.cuda(), net)
    check.passes()
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with pytest.warns(UserWarning, match='synchroniz') as waits:
            assert check.passes()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert len(waits) == 1
