import pytest
import torch
from mmengine.hooks import Hook

from mmyolo_ema.hooks.finite_check import FiniteCheck
from tests.helpers import assert_equal
from tests.hooks.toy import average_of, toy_hook

BAD = [float('nan'), float('inf'), -float('inf')]


@pytest.fixture
def check(net):
    return FiniteCheck(net, net)


def test_a_finite_model_passes(check):
    assert check.look() == ([], [])


@pytest.mark.parametrize('bad', BAD)
@pytest.mark.parametrize('name', ['linear.weight', 'norm.bias', 'norm.running_var'])
def test_one_bad_number_is_found_and_named(net, check, bad, name):
    net.state_dict()[name].view(-1)[1] = bad
    assert check.look() == (([], [name]) if 'running' in name else ([name], []))


def test_numbers_too_large_for_a_norm_pass(net, check):
    with torch.no_grad():
        net.linear.weight.fill_(3e38)
    net.norm.running_var[1] = float('nan')
    assert check.look() == check.look() == ([], ['norm.running_var'])
    net.linear.weight.data[0, 0] = float('inf')
    assert check.look() == (['linear.weight'], ['norm.running_var'])


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_looked_at(net, dtype):
    net.linear.to(dtype)
    check = FiniteCheck(net, net)
    assert check.look() == ([], [])
    net.linear.bias.data[0] = float('nan')
    assert check.look() != ([], [])


def test_buffers_that_no_checkpoint_holds_are_not_looked_at(net, check):
    net.cache.fill_(float('inf'))
    assert check.look() == ([], [])


def test_a_mask_with_infinities_is_not_looked_at(net):
    net.register_buffer('mask', torch.tensor([0.0, -float('inf')]))
    check = FiniteCheck(net, net)
    assert check.look() == ([], [])
    net.linear.bias.data[0] = float('nan')
    assert check.look() == (['linear.bias'], [])


def test_kinds_that_torch_cannot_look_at_are_left_out(net):
    net.register_buffer('sparse', torch.eye(3).to_sparse())
    net.register_buffer('tiny', torch.zeros(2).to(torch.float8_e4m3fn))
    net.numbers = torch.nn.Parameter(torch.arange(3), requires_grad=False)
    assert FiniteCheck(net, net).look() == ([], [])


def test_replaced_parameter_is_looked_at(net, check):
    net.linear.weight = torch.nn.Parameter(torch.full((4, 3), float('nan')))
    assert check.look() != ([], [])


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


def test_bad_steps_are_left_out_counted_and_announced_seldom(toy, messages):
    runner = toy()
    runner.register_hook(Poison())
    runner.train()
    assert average_of(runner).skipped == 11
    assert average_of(runner).ema_model.steps == 1
    said = [message for message in messages if 'NaN or infinity' in str(message)]
    assert len(said) == 2
    assert 'in out.bias (the 1. such step of the run)' in said[0]
    assert 'the 10. such step' in said[1]


def test_what_the_constructor_leaves_undefined_is_looked_at(toy, monkeypatch):
    runner = toy()
    with torch.no_grad():
        runner.model.out.bias.fill_(float('nan'))  # as torch.empty() may
    monkeypatch.setattr(runner.model, 'init_weights', lambda: torch.nn.init.zeros_(runner.model.out.bias))
    runner.register_hook(Poison())
    runner.train()
    assert average_of(runner).skipped == 11


@pytest.mark.slow
def test_check_can_be_turned_off(toy):
    runner = toy(hook=toy_hook(skip_nonfinite=False), optim_wrapper=dict(optimizer=dict(type='SGD', lr=1e30)))
    runner.train()
    assert average_of(runner).ema_model.steps == 12
    assert not all(value.isfinite().all() for value in average_of(runner).ema_model.state_dict().values())


class PoisonBuffers(Hook):
    """Leaves NaN in a variance from the fourth iteration to the eighth; statistics of the batch train on."""

    priority = 'HIGHEST'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 3:
            runner.model.norm.running_var[1] = float('nan')
        elif runner.iter == 8:
            runner.model.norm.running_var[1] = 1.0


class RememberVariance(Hook):
    """Remembers what average and model hold after each iteration."""

    priority = 'LOWEST'

    def before_train(self, runner):
        self.averaged, self.raw = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        average = next(hook for hook in runner.hooks if hasattr(hook, 'ema_model')).ema_model.module
        self.averaged.append(average.norm.running_var.clone())
        self.raw.append(runner.model.norm.running_var.clone())


@pytest.mark.parametrize('update_buffers', [True, False])
@pytest.mark.parametrize('kind', ['mmyolo_ema.ExpMomentumEMA', 'ExponentialMovingAverage'])
def test_buffer_that_is_not_finite_keeps_its_average_and_stops_nothing_else(toy, messages, kind, update_buffers):
    hook = dict(type='mmyolo_ema.EMAHook', ema_type=kind, momentum=0.1, update_buffers=update_buffers)
    whole = toy(hook=hook)
    whole.train()
    runner, remember = toy(hook=hook), RememberVariance()
    runner.register_hook(PoisonBuffers())
    runner.register_hook(remember)
    runner.train()
    average = average_of(runner).ema_model
    assert (average.steps, average_of(runner).skipped) == (12, 0)
    assert_equal(dict(average.module.named_parameters()), dict(average_of(whole).ema_model.module.named_parameters()))
    assert all(value.isfinite().all() for value in remember.averaged)
    assert all(torch.equal(value, remember.averaged[2]) for value in remember.averaged[3:8])
    assert not torch.equal(remember.averaged[8], remember.averaged[2])
    if not update_buffers:
        assert torch.equal(remember.averaged[8], remember.raw[8])
    said = [message for message in messages if 'NaN or infinity in buffers' in str(message)]
    assert len(said) == 1
    assert 'of the model: norm.running_var. ' in said[0]


def test_second_average_keeps_the_buffer_too(toy):
    runner = toy(custom_hooks=[toy_hook(), dict(type='mmyolo_ema.SnapshotHook', second_horizon=5)])
    runner.register_hook(PoisonBuffers())
    seen = []

    class Remember(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen.append(average_of(runner).averages['second'].module.norm.running_var.clone())

    runner.register_hook(Remember(), priority='LOWEST')
    runner.train()
    assert all(torch.equal(value, seen[2]) for value in seen[3:8])
    assert not torch.equal(seen[8], seen[2])


@pytest.mark.gpu
def test_check_waits_for_the_gpu_once(net):
    check = FiniteCheck(net.cuda(), net)
    check.look()
    torch.cuda.set_sync_debug_mode('warn')
    try:
        with pytest.warns(UserWarning, match='synchroniz') as waits:
            assert check.look() == ([], [])
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert len(waits) == 1
