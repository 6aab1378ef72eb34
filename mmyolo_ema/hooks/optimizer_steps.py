"""Telling real optimizer steps from iterations."""

import weakref
from typing import Union

from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

__all__ = ['OptimizerSteps', 'accumulative_counts']

Wrapper = Union[OptimWrapper, OptimWrapperDict]


class OptimizerSteps:
    """Tells in which iterations an optimizer of a model made a step.

    Under gradient accumulation there is one every few iterations, and a gradient scaler skips it if the gradients
    overflow. torch's optimizers themselves are listened to, so that it does not matter which wrapper drives them, or
    whether one is replaced. Where several step in one iteration, as a generator's and a discriminator's may, that
    counts once.

    Args:
        model: The bare model. Optimizers of others do not count, unless the runner's wrapper holds them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._heard: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._is_of_model: weakref.WeakKeyDictionary[Optimizer, bool] = weakref.WeakKeyDictionary()
        # torch keeps the function for the rest of the process; the model must not be kept with it.
        heard = weakref.ref(self._heard)

        def note(optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
            # A fused optimizer is called for a skipped step too, and is told by the gradient scaler to do nothing.
            overflow = getattr(optimizer, 'found_inf', None)
            stepped = heard()
            if stepped is not None and (overflow is None or not overflow.item()):
                stepped.add(optimizer)

        self.close = weakref.finalize(self, register_optimizer_step_post_hook(note).remove)

    def stepped(self, optim_wrapper: Wrapper) -> bool:
        """Whether a step was made since this was asked last.

        An optimizer that is not torch's, such as DeepSpeed's, cannot be listened to. Every iteration counts then.

        Args:
            optim_wrapper: The runner's.
        """
        wrappers = _wrappers(optim_wrapper)
        # These count also if they hold copies of the model's parameters, in another precision or in shards.
        wrapped = [getattr(wrapper, 'optimizer', None) for wrapper in wrappers]
        stepped = any(optimizer in wrapped or self._steps_model(optimizer) for optimizer in self._heard)
        self._heard.clear()
        return stepped or not all(map(_can_be_heard, wrapped))

    def _steps_model(self, optimizer: Optimizer) -> bool:
        if optimizer not in self._is_of_model:
            parameters = {id(parameter) for parameter in self._model.parameters()}
            self._is_of_model[optimizer] = any(
                id(parameter) in parameters for group in optimizer.param_groups for parameter in group['params'])
        return self._is_of_model[optimizer]


def accumulative_counts(optim_wrapper: Wrapper) -> int:
    """Returns how many iterations a step takes, as far as the wrappers say so."""
    return min(getattr(wrapper, '_accumulative_counts', 1) for wrapper in _wrappers(optim_wrapper))


def _wrappers(optim_wrapper: Wrapper) -> list:
    return list(optim_wrapper.values()) if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]


def _can_be_heard(optimizer: object) -> bool:
    """Whether an optimizer is torch's; torch marks the step of each class that it listens to."""
    return isinstance(optimizer, Optimizer) and getattr(type(optimizer).step, 'hooked', False)
