import copy
import gc
import weakref

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS, OPTIMIZERS
from torch import nn
from torch.optim import optimizer

from mmyolo_ema.hooks.optimizer_steps import OptimizerSteps
from tests.hooks.toy import average_of


@OPTIM_WRAPPERS.register_module(force=True)
class OverflowingOptimWrapper(AmpOptimWrapper):
    """MMEngine's wrapper with a gradient scaler on the CPU; the gradients of every third step overflow."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.loss_scaler = torch.amp.GradScaler('cpu', init_scale=2.0)
        self.cast_dtype = torch.bfloat16
        self.calls = 0

    def step(self, **kwargs):
        self.calls += 1
        if self.calls % 3 == 0:
            self.optimizer.param_groups[0]['params'][0].grad.fill_(float('inf'))
        super().step(**kwargs)


@pytest.mark.parametrize(
    'kind', [dict(type='SGD', lr=0.1), dict(type='SGD', lr=0.1, fused=True)], ids=['plain', 'fused']
)
def test_steps_that_the_gradient_scaler_skips_do_not_count(toy, monkeypatch, kind):
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    runner = toy(optim_wrapper=dict(type='OverflowingOptimWrapper', optimizer=kind))
    runner.train()
    assert runner.optim_wrapper.calls == 12
    assert average_of(runner).ema_model.steps == 8


@MODELS.register_module(force=True)
class TwoParts(BaseModel):
    """Trains its first part in each iteration, and its second in every third."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 1), nn.Linear(3, 1)
        self.iterations = 0

    def forward(self, inputs, mode='tensor'):
        return list(self.first(torch.stack(inputs)))

    def train_step(self, data, optim_wrapper):
        inputs = torch.stack(data['inputs'])
        if self.iterations % 2 == 0:
            optim_wrapper['first'].update_params(self.first(inputs).square().mean())
        if self.iterations % 3 == 0:
            optim_wrapper['second'].update_params(self.second(inputs).square().mean())
        self.iterations += 1
        return {}


@OPTIM_WRAPPER_CONSTRUCTORS.register_module(force=True)
class OneForEachPart:
    def __init__(self, optim_wrapper_cfg, paramwise_cfg=None):
        pass

    def __call__(self, model):
        return OptimWrapperDict(
            **{
                name: OptimWrapper(torch.optim.SGD(part.parameters(), lr=0.1))
                for name, part in model.named_children()
                if name != 'data_preprocessor'
            }
        )


def test_iterations_in_which_any_of_several_optimizers_steps_count_once(toy):
    runner = toy(model=dict(type='TwoParts'), optim_wrapper=dict(constructor='OneForEachPart'), param_scheduler=None)
    runner.train()
    # Of iterations 0 to 11, those that 2 or 3 divides.
    assert average_of(runner).ema_model.steps == 8


class Replace(Hook):
    """Gives the runner another optimizer after the first epoch."""

    def before_train_epoch(self, runner):
        if runner.epoch == 1:
            runner.optim_wrapper = OptimWrapper(torch.optim.SGD(runner.model.parameters(), lr=0.1))


def test_replaced_optimizer_is_heard(toy):
    runner = toy(param_scheduler=None)
    runner.register_hook(Replace())
    runner.train()
    assert average_of(runner).ema_model.steps == 12


def test_optimizer_of_another_model_is_not_heard(net):
    steps, own = OptimizerSteps(net), wrapper_of(net)
    wrapper_of(nn.Linear(1, 1)).step()
    assert not steps.stepped(own)
    own.step()
    assert steps.stepped(own)
    assert not steps.stepped(own)


def test_optimizer_of_copies_of_the_parameters_is_heard_in_the_wrapper(net):
    steps, own = OptimizerSteps(net), wrapper_of(copy.deepcopy(net))
    own.step()
    assert steps.stepped(own)


def wrapper_of(model):
    return OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1))


class Unheard(torch.optim.Optimizer):
    """An optimizer that torch does not listen to."""

    def __init__(self, parameters):
        self.param_groups = [dict(params=list(parameters))]

    def step(self, closure=None):
        pass


@pytest.mark.parametrize(
    'make', [lambda net: object(), lambda net: OptimWrapper(Unheard(net.parameters()))], ids=['no wrapper', 'no hooks']
)
def test_every_iteration_counts_for_an_optimizer_that_cannot_be_heard(net, make):
    steps, wrapper = OptimizerSteps(net), make(net)
    assert steps.stepped(wrapper)
    assert steps.stepped(wrapper)


@OPTIMIZERS.register_module(force=True)
class Wrapping(torch.optim.Optimizer):
    """Wraps an optimizer as Lookahead does, without a call of torch's constructor."""

    def __init__(self, params, lr, steps_inner=True):
        self.inner = torch.optim.SGD(params, lr=lr)
        self.steps_inner = steps_inner
        self.param_groups, self.defaults, self.state = self.inner.param_groups, {}, {}

    def step(self, closure=None):
        if self.steps_inner:
            self.inner.step()

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)

    def state_dict(self):
        return self.inner.state_dict()


@OPTIMIZERS.register_module(force=True)
class WrappingSeveral(torch.optim.Optimizer):
    """Wraps, in a list, an optimizer that wraps another one."""

    def __init__(self, params, lr):
        self.several = [Wrapping(params, lr)]
        self.param_groups, self.defaults, self.state = self.several[0].param_groups, {}, {}

    def step(self, closure=None):
        self.several[0].step()

    def zero_grad(self, set_to_none=True):
        self.several[0].zero_grad(set_to_none)

    def state_dict(self):
        return self.several[0].state_dict()


@pytest.mark.parametrize('kind', ['Wrapping', 'WrappingSeveral'])
def test_optimizer_is_heard_when_what_it_wraps_is(toy, kind):
    runner = toy(optim_wrapper=dict(optimizer=dict(type=kind, lr=0.1), accumulative_counts=2), param_scheduler=None)
    runner.train()
    assert average_of(runner).ema_model.steps == 6


def test_every_iteration_counts_for_an_optimizer_that_does_not_step_what_it_wraps(toy):
    runner = toy(optim_wrapper=dict(optimizer=dict(type='Wrapping', lr=0.1, steps_inner=False)), param_scheduler=None)
    runner.train()
    assert average_of(runner).ema_model.steps == 12


def test_nothing_is_left_after_the_training_or_an_error(toy):
    gc.collect()  # what earlier tests left
    before = len(optimizer._global_optimizer_post_hooks)
    runner = toy()
    runner.train()
    assert len(optimizer._global_optimizer_post_hooks) == before
    steps = OptimizerSteps(runner.model)
    model = weakref.ref(runner.model)
    del steps, runner
    gc.collect()
    assert model() is None
    assert len(optimizer._global_optimizer_post_hooks) == before
