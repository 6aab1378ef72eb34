"""Parameters that FullyShardedDataParallel (FSDP1) lays end to end, so that each process has a range of elements."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType

from mmyolo_ema._upstream import FlatRange, flat_handles, flat_ranges, local_shard


class FlatPart(Tensor):
    """Stands for such a parameter: it has the shape of the whole, and NaN without memory in the place of values."""

    handle: Any
    range: FlatRange

    def to_local(self) -> Tensor:
        """Returns the elements that this process has, flat, in the same memory."""
        return local_shard(self.handle)[self.range.offset :][: self.range.stop - self.range.start]

    def part_of(self, whole: Tensor) -> Tensor:
        """Returns those elements of a whole tensor, flat."""
        whole = whole.detach()
        if whole.stride() != self.range.stride:
            # In the order in which the model had them in memory, which may be that of channels_last.
            whole = torch.empty_strided(self.range.shape, self.range.stride, dtype=whole.dtype).copy_(whole)
        return whole.as_strided((whole.numel(),), (1,))[self.range.start : self.range.stop]

    def joined(self, part: Tensor) -> Tensor:
        """Returns the whole tensor of the parts of all processes, which must all call this."""
        whole = torch.zeros(self.numel(), dtype=part.dtype, device=self.handle.device)
        whole[self.range.start : self.range.stop] = part
        if self.handle.uses_sharded_strategy:
            # As bytes, which one process has and the others have zeros for, so that nothing is rounded.
            distributed.all_reduce(whole.view(torch.uint8), group=self.handle.process_group)
        return whole.as_strided(self.range.shape, self.range.stride)


def flat_parts(model: nn.Module) -> dict[nn.Module, dict[str, FlatPart]]:
    """Returns the parameters of a model that FullyShardedDataParallel has cut, by the modules that hold them.

    A parameter is the same object each time.
    """
    parts: dict[nn.Module, dict[str, FlatPart]] = defaultdict(dict)
    for handle in flat_handles(model):
        if not hasattr(handle, 'averaged_parts'):
            handle.averaged_parts = [_part(handle, place) for place in flat_ranges(handle)]
        for part in handle.averaged_parts:
            for module, key in part.range.holders:
                parts[module][key] = part
    return parts


def is_saved_in_parts(model: nn.Module) -> bool:
    """Whether each process saves its own part of such a model, as with ``state_dict_cfg='local'``."""
    return bool(flat_handles(model)) and state_dict_type(model) is StateDictType.LOCAL_STATE_DICT


def state_dict_type(model: nn.Module) -> StateDictType:
    """Returns which form of its state such a model gives."""
    return FullyShardedDataParallel.get_state_dict_type(model).state_dict_type


def _part(handle: Any, place: FlatRange) -> FlatPart:
    part = local_shard(handle).new_full((), torch.nan).expand(place.shape).as_subclass(FlatPart)
    part.handle, part.range = handle, place
    return part
