"""Where a module holds its tensors, by name."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from mmengine.model import is_model_wrapper
from torch import Tensor, nn

from mmyolo_ema._upstream import COMPILED, is_persistent


class TensorReference(NamedTuple):
    """A place in a module that holds a tensor: ``holder[key]``."""

    holder: dict[str, Any]
    key: str
    is_parameter: bool
    is_persistent: bool
    #: Whether it is part of an observer for quantization, whose scale is of use beside its own zero point only.
    is_of_quantizer: bool = False

    @property
    def tensor(self) -> Tensor:
        return self.holder[self.key]

    def copy(self) -> Tensor:
        copy = self.tensor.detach().clone()
        return nn.Parameter(copy, requires_grad=False) if self.is_parameter else copy


def tensor_references(model: nn.Module) -> Iterator[tuple[str, TensorReference]]:
    """Yields the name and the place of each tensor; a shared tensor comes once for each of its names."""
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f'{path}.' if path else ''
        for key, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + key, TensorReference(module._parameters, key, True, True)
        is_quantizer = hasattr(type(module), 'calculate_qparams')  # of torch's observers, wherever they move
        for key, buffer in module._buffers.items():
            if buffer is not None:
                stored = is_persistent(module, key)
                yield prefix + key, TensorReference(module._buffers, key, False, stored, is_quantizer)


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the model inside wrappers for distributed training and ``torch.compile``."""
    while True:
        if COMPILED in model._modules:
            model = model.get_submodule(COMPILED)
        elif is_model_wrapper(model):
            model = model.get_submodule('module')
        else:
            return model


def check_same_tensors(averaged: dict[str, TensorReference], source: dict[str, TensorReference]) -> None:
    """Raises ValueError if a model and its average differ in the names of their tensors, or the shapes of parameters.

    A buffer may change its shape, as a table does that follows the size of the images, and one that no checkpoint holds
    may come and go.
    """
    missing = [name for name, reference in averaged.items() if reference.is_persistent and name not in source]
    unexpected = [name for name, reference in source.items() if reference.is_persistent and name not in averaged]
    shapes = [
        f'{name} (model {tuple(source[name].tensor.shape)}, average {tuple(reference.tensor.shape)})'
        for name, reference in averaged.items()
        if reference.is_parameter and name in source and reference.tensor.shape != source[name].tensor.shape
    ]
    problems = [
        f'{what}: {", ".join(names)}.'
        for what, names in (
            ('Missing from the model', missing),
            ('Unexpected in the model', unexpected),
            ('Of another shape', shapes),
        )
        if names
    ]
    if problems:
        raise ValueError(
            'the model and its average do not hold the same tensors. '
            + ' '.join(problems)
            + ' Update with the model that the average was made from, or build a new average.'
        )
