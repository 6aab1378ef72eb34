import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.registry import MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from torch import nn

from mmyolo_ema.hooks.optimizer_steps import OptimizerSteps


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


@pytest.mark.parametrize('optimizer', [dict(type='SGD', lr=0.1), dict(type='SGD', lr=0.1, fused=True)],
                         ids=['plain', 'fused'])
def test_steps_that_the_gradient_scaler_skips_do_not_count(toy, average_of, monkeypatch, optimizer):
    monkeypatch.setattr(amp_optimizer_wrapper, 'is_cuda_available', lambda: True)
    runner = toy(optim_wrapper=dict(type='OverflowingOptimWrapper', optimizer=optimizer))
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
        return OptimWrapperDict(**{
            name: OptimWrapper(torch.optim.SGD(part.parameters(), lr=0.1)) for name, part in model.named_children()
            if name != 'data_preprocessor'
        })


def test_iterations_in_which_any_of_several_optimizers_steps_count_once(toy, average_of):
    runner = toy(model=dict(type='TwoParts'), optim_wrapper=dict(constructor='OneForEachPart'), param_scheduler=None)
    runner.train()
    # Of iterations 0 to 11, those that 2 or 3 divides.
    assert average_of(runner).ema_model.steps == 8


def test_every_iteration_counts_for_an_optimizer_that_cannot_be_asked():
    steps = OptimizerSteps(object())
    assert steps.stepped()
    assert steps.stepped()


def test_optimizer_is_left_alone_after_the_training(toy):
    runner = toy()
    runner.train()
    assert not runner.optim_wrapper.optimizer._optimizer_step_post_hooks
