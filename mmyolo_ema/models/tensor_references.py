"""Where a module holds its tensors, by name."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from mmengine.model import is_model_wrapper
from torch import Tensor, nn
from torch.distributed.fsdp import FlatParameter, FullyShardedDataParallel

from mmyolo_ema._upstream import CHECKPOINT_WRAPPED, COMPILED, FSDP_WRAPPED, is_persistent
from mmyolo_ema.models.flat_parts import flat_parts


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
    cut = flat_parts(model)
    for path, module in named_modules(model):
        prefix = f'{path}.' if path else ''
        parameters = module._parameters if module not in cut else {**module._parameters, **cut[module]}
        for key, parameter in parameters.items():
            if parameter is not None and not isinstance(parameter, FlatParameter):
                yield prefix + key, TensorReference(parameters, key, True, True)
        is_quantizer = hasattr(type(module), 'calculate_qparams')  # of torch's observers, wherever they move
        for key, buffer in module._buffers.items():
            if buffer is not None:
                stored = is_persistent(module, key)
                yield prefix + key, TensorReference(module._buffers, key, False, stored, is_quantizer)


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yields the modules of a model, each with all names that its state would have: without those of wrappers."""
    for path, module in model.named_modules(remove_duplicate=False):
        yield '.'.join(part for part in path.split('.') if part not in (FSDP_WRAPPED, CHECKPOINT_WRAPPED)), module


def unwrap(model: nn.Module) -> nn.Module:
    """Returns the model inside wrappers for distributed training and ``torch.compile``.

    FullyShardedDataParallel is left on, because it alone knows where the parameters are.
    """
    while True:
        if COMPILED in model._modules:
            model = model.get_submodule(COMPILED)
        elif is_model_wrapper(model) and not isinstance(model, FullyShardedDataParallel):
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
