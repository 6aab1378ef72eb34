"""Models whose parameters torch has cut, so that each process holds a part of each.

``fully_shard`` (FSDP2) leaves DTensors in the model; FullyShardedDataParallel (FSDP1) ranges of elements, FlatParts.

What is said of a tensor here is the tensor itself if nothing has cut it.
"""

import math
from copy import deepcopy
from typing import Any, TypeGuard, Union

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn
from torch.distributed.fsdp import FlatParameter, FSDPModule, FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Shard

from mmyolo_ema._upstream import FSDP_WRAPPED, flat_handles, reshard_flat
from mmyolo_ema.models.flat_parts import FlatPart, flat_parts
from mmyolo_ema.models.tensor_references import tensor_references


def is_cut(tensor: object) -> TypeGuard[Union[DTensor, FlatPart]]:
    """Whether something is a tensor of which the processes hold a part each."""
    return isinstance(tensor, (DTensor, FlatPart))


def is_fully_sharded(model: nn.Module) -> bool:
    """Whether torch has cut parameters of a model."""
    return any(isinstance(module, (FSDPModule, FullyShardedDataParallel)) for module in model.modules())


def local(tensor: Tensor) -> Tensor:
    """Returns what this process holds of a tensor, in the same memory; it may have no elements."""
    with torch.no_grad():
        return tensor.to_local() if is_cut(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Returns all of a tensor, on the CPU if it is cut. All processes must call this."""
    return _joined(local(tensor), tensor) if is_cut(tensor) else tensor


def part_of(tensor: Tensor, source: Tensor) -> Tensor:
    """Returns what a process that holds its part of the source would hold of a whole tensor. Does not communicate."""
    if isinstance(source, FlatPart):
        return source.part_of(tensor).to(local(source).device)
    if not isinstance(source, DTensor):
        return tensor
    placement: Any = source.placements[0]
    # As torch cuts them: the last processes may have nothing.
    parts = tensor.detach().chunk(source.device_mesh.size(), placement.dim)
    rank, own = source.device_mesh.get_local_rank(), local(source)
    return (parts[rank] if rank < len(parts) else tensor.new_empty(own.shape)).to(own.device)


def reshard(model: nn.Module) -> None:
    """Makes a model forget the whole tensors of its last forward, which would be used in the place of the parts."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
    reshard_flat(model)


def uncut_copy(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Returns a copy of a bare model that nothing has cut. torch refuses to copy one that is.

    What is cut in the model has no values in the copy, which are the matter of :class:`LocalParts`.

    Args:
        model: The model.
        memo: As for :func:`copy.deepcopy`: what the copy is to share, by its id.
    """
    reshard(model)
    cut: list[nn.Module] = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in cut:
        state = fully_shard.state(module)  # type: ignore[attr-defined]
        original = next(kind for kind in type(module).__mro__[1:] if not issubclass(kind, FSDPModule))
        memo.update({id(state): state, id(module): original.__new__(original)})
    for wrapper in [module for module in model.modules() if isinstance(module, FullyShardedDataParallel)]:
        module = wrapper.get_submodule(FSDP_WRAPPED)
        memo[id(wrapper)] = memo[id(module)] = type(module).__new__(type(module))
        cut.append(module)
    memo.update({id(parameter): _without_values(parameter) for parameter in model.parameters() if is_cut(parameter)})
    memo.update({id(handle.flat_param): handle.flat_param for handle in flat_handles(model)})
    for module in cut:
        vars(memo[id(module)]).update(deepcopy(vars(module), memo))
    copy = deepcopy(model, memo)
    for module, parts in flat_parts(model).items():
        for key, part in parts.items():
            vars(memo[id(module)]).pop(key, None)  # a view of the flat parameter
            memo[id(module)]._parameters[key] = memo.setdefault(id(part), _without_values(part))
    if cut:
        _remove_hooks(copy)
    return copy


def _without_values(cut: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.empty(cut.shape, dtype=cut.dtype), cut.requires_grad)


def _remove_hooks(copy: nn.Module) -> None:
    """Removes what still belongs to the model that a module was copied from, and would act on it."""
    for module in copy.modules():
        for key, parameter in [*module._parameters.items()]:
            if isinstance(parameter, FlatParameter):
                del module._parameters[key]
        for name, value in [*vars(module).items()]:
            if name.startswith(('__composable_api', '_fsdp', '_is_fsdp')):
                delattr(module, name)
            elif name.endswith('_hooks') and isinstance(value, dict):
                for key, hook in [*value.items()]:
                    if str(getattr(hook, '__module__', '')).startswith('torch.distributed.fsdp'):
                        del value[key]


def check_cut(model: nn.Module) -> None:
    """Raises ValueError if not all parameters of a fully sharded model are cut once, among all processes."""
    for handle in flat_handles(model):
        if handle.world_size != get_world_size() or not (handle.uses_sharded_strategy or get_world_size() == 1):
            raise ValueError(
                'FullyShardedDataParallel does not cut the parameters once among all processes: set '
                "sharding_strategy='FULL_SHARD' or 'SHARD_GRAD_OP', and no process_group"
            )
    for name, reference in tensor_references(model):
        parameter = reference.tensor
        if not is_cut(parameter):
            if reference.is_parameter and parameter.requires_grad:
                raise ValueError(
                    f'FSDP leaves out {name}, which is trained and would differ between the '
                    'processes: call fully_shard on the whole model too, or set no ignored_modules'
                )
        elif isinstance(parameter, DTensor) and (
            parameter.device_mesh.size() != get_world_size()
            or parameter.device_mesh.ndim != 1
            or not isinstance(parameter.placements[0], Shard)
        ):
            raise ValueError(
                f'{name} is placed as {parameter.placements} on {parameter.device_mesh}: average models '
                'that fully_shard cuts once among all processes, on a mesh of one dimension'
            )


class LocalParts:
    """What this process keeps of an average of a fully sharded model: of each tensor the part that it holds there.

    The tensors of the average keep their shapes, but have no memory and read as NaN until :meth:`gather`.

    Args:
        pairs: Distinct whole tensors of the average, each with the tensor of the model that it follows.
        is_new: Whether the average begins as a copy of the model. Otherwise it goes on from the whole tensors.
    """

    def __init__(self, pairs: list[tuple[Tensor, Tensor]], is_new: bool = False) -> None:
        self._parts: dict[int, tuple[Tensor, Tensor, Any]] = {
            id(averaged): (
                averaged,
                (local(source) if is_new else part_of(averaged, source)).to(averaged.dtype, copy=True),
                source,
            )
            for averaged, source in pairs
        }
        self.drop()

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._parts

    def has_part(self, tensor: Tensor) -> bool:
        """Whether this process updates something of a tensor: a part with elements, or all, if it is not cut."""
        return tensor not in self or self._parts[id(tensor)][1].numel() > 0

    def own_part(self, averaged: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the part of a tensor that this process keeps, and that of its source."""
        return self._parts[id(averaged)][1], local(source)

    def gather(self, is_kept: bool = True) -> None:
        """Makes the tensors whole, on the CPU, in the processes that keep them. All must call this."""
        wholes = ((averaged, _joined(part, source)) for averaged, part, source in self._parts.values())
        # No tensor changes until all are there, so that an interruption loses nothing.
        for averaged, tensor in [pair for pair in wholes if is_kept]:
            averaged.data = tensor

    def drop(self) -> None:
        """Leaves only the parts."""
        for averaged, *_ in self._parts.values():
            averaged.data = averaged.new_full((), math.nan).expand(averaged.shape)


def _joined(part: Tensor, like: Union[DTensor, FlatPart]) -> Tensor:
    if isinstance(like, FlatPart):
        return like.joined(part).to('cpu', copy=True)
    mesh = like.device_mesh
    # Without shape and stride, parts of different sizes would wait for each other for ever.
    return (
        DTensor.from_local(part.to(mesh.device_type), mesh, like.placements, shape=like.shape, stride=like.stride())
        .full_tensor()
        .to('cpu', copy=True)
    )
