"""Copying a model, and nothing that it only refers to."""

import gc
from collections.abc import Iterator
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmyolo_ema.models.fully_sharded import uncut_copy

_CHILDREN = ('_parameters', '_buffers', '_modules')
# What deepcopy does not look into either.
_ATOMIC = (type, ModuleType, FunctionType, BuiltinFunctionType)


def own_copy(model: nn.Module) -> nn.Module:
    """Returns a deep copy of a model that shares what is no child of it.

    That is what it reaches through plain attributes only: another module, such as the teacher of a distillation, a
    tensor, and the process groups of SyncBatchNorm, which cannot be copied. Parameters that FSDP has cut have the shape
    of the whole in the copy, and no values.

    Args:
        model: The bare model.
    """
    own = {id(part) for parts in (model.modules(), model.parameters(), model.buffers()) for part in parts}
    groups = [vars(module).get('process_group') for module in model.modules()]
    shared = [*_referred(model, own), *(group for group in groups if group is not None)]
    return uncut_copy(model, {id(value): value for value in shared})


def _referred(model: nn.Module, own: set[int]) -> Iterator[Any]:
    """Yields the modules and tensors that a model refers to and does not own."""
    own_modules = [module for module in model.modules() if not isinstance(module, FullyShardedDataParallel)]
    pending = [value for module in own_modules for name, value in vars(module).items() if name not in _CHILDREN]
    seen = set(own)
    while pending:
        value = pending.pop()
        if id(value) in seen or isinstance(value, _ATOMIC):
            continue
        seen.add(id(value))
        # A module that holds one of the model's, as a wrapper does, is copied, so that it holds the copy.
        if isinstance(value, Tensor) or (
            isinstance(value, nn.Module) and not any(id(module) in own for module in value.modules())
        ):
            yield value
        else:
            pending += gc.get_referents(value)
