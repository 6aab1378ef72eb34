"""Bringing a model back that was rebuilt for a validation or test."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from mmyolo_ema.models.module_watch import ModuleWatch

_REGISTRIES = ('_modules', '_parameters', '_buffers')


class Structure:
    """The modules of a model as they are now.

    A hook may fuse layers for a test: it takes modules out, puts others in, and marks what holds them as deployed.

    Args:
        model: The bare model.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        modules = list(model.modules())
        self._watch = ModuleWatch(modules)
        self._modules = [
            (module, vars(module).copy(), [vars(module)[name].copy() for name in _REGISTRIES]) for module in modules
        ]
        self._need_gradients = [
            (parameter, parameter.requires_grad)
            for module in modules
            for parameter in module._parameters.values()
            if parameter is not None
        ]

    def restore(self) -> None:
        """Undoes what was done to modules that hold other modules or parameters than before; leaves all others."""
        if self._watch.is_unchanged():
            return
        rebuilt = False
        for module, attributes, registries in self._modules:
            children, parameters, _ = registries
            if _same(module._modules, children) and _same(module._parameters, parameters):
                continue
            rebuilt = True
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in zip(_REGISTRIES, registries):
                # The same dictionaries, because others watch them.
                attributes[name].clear()
                attributes[name].update(content)
        if rebuilt:
            for parameter, needs_gradient in self._need_gradients:
                parameter.requires_grad_(needs_gradient)
            self._model.train(self._model.training)


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Puts a model into training or evaluation mode for a moment; layers may merge or split weights on the way."""
    current = model.training
    if current != training:
        model.train(training)
    try:
        yield
    finally:
        if model.training != current:
            model.train(current)


def _same(now: dict[str, Any], before: dict[str, Any]) -> bool:
    """Whether two dictionaries hold the same objects under the same names."""
    return now.keys() == before.keys() and all(value is before[name] for name, value in now.items())
