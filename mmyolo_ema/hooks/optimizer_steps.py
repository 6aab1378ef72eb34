"""Telling real optimizer steps from iterations."""

import weakref
from typing import Any, Union

from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from mmyolo_ema._upstream import has_step_hooks, is_skipped, iterations_per_step

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
        self._ever_heard: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._iterations = 0
        self._is_of_model: weakref.WeakKeyDictionary[Optimizer, bool] = weakref.WeakKeyDictionary()
        # torch keeps the function for the rest of the process; the model must not be kept with it.
        heard = weakref.ref(self._heard)

        def note(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            stepped = heard()
            if stepped is not None and not is_skipped(optimizer):
                stepped.add(optimizer)

        self.close = weakref.finalize(self, register_optimizer_step_post_hook(note).remove)

    def stepped(self, optim_wrapper: Wrapper) -> bool:
        """Whether a step was made since this was asked last.

        torch does not listen to an optimizer that never calls its constructor, as many that wrap another one. Such an
        optimizer is heard when what it wraps is. Where nothing can be heard, every iteration counts.

        Args:
            optim_wrapper: The runner's.
        """
        self._iterations += 1
        self._ever_heard |= self._heard
        # These count also if they hold copies of the model's parameters, in another precision or in shards.
        families = [_with_wrapped(getattr(wrapper, 'optimizer', None)) for wrapper in _wrappers(optim_wrapper)]
        stepped = any(
            self._steps_model(optimizer) or any(optimizer in family for family in families) for optimizer in self._heard
        )
        self._heard.clear()
        patience = accumulative_counts(optim_wrapper)
        return stepped or not all(self._is_listened_to(family, patience) for family in families)

    def _is_listened_to(self, family: list[Any], patience: int) -> bool:
        """Whether silence means that there was no step.

        Args:
            family: An optimizer, and those that it wraps. It need not step them: then they stay silent.
            patience: How many iterations a step takes.
        """
        if _can_be_heard(family[0]) or any(optimizer in self._ever_heard for optimizer in family[1:]):
            return True
        return any(map(_can_be_heard, family)) and self._iterations < patience

    def _steps_model(self, optimizer: Optimizer) -> bool:
        if optimizer not in self._is_of_model:
            parameters = {id(parameter) for parameter in self._model.parameters()}
            self._is_of_model[optimizer] = any(
                id(parameter) in parameters for group in optimizer.param_groups for parameter in group['params']
            )
        return self._is_of_model[optimizer]


def accumulative_counts(optim_wrapper: Wrapper) -> int:
    """Returns how many iterations a step takes, as far as the wrappers say so."""
    return min(iterations_per_step(wrapper) for wrapper in _wrappers(optim_wrapper))


def _wrappers(optim_wrapper: Wrapper) -> list[Any]:
    return list(optim_wrapper.values()) if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]


def _with_wrapped(optimizer: object) -> list[Any]:
    """Returns an optimizer and, if torch does not listen to it, those in its attributes and in theirs."""
    family = [optimizer]
    for member in family:
        if not _can_be_heard(member):
            held = [
                part
                for value in getattr(member, '__dict__', {}).values()
                for part in (value if isinstance(value, (list, tuple)) else [value])
            ]
            family += [part for part in held if isinstance(part, Optimizer) and part not in family]
    return family


def _can_be_heard(optimizer: object) -> bool:
    """Whether an optimizer is torch's, and of a class whose steps it listens to."""
    return isinstance(optimizer, Optimizer) and has_step_hooks(type(optimizer))
