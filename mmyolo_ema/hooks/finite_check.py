"""Noticing NaN and infinity in a model before they are averaged."""

import math
from collections import defaultdict
from operator import attrgetter
from typing import NamedTuple

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from mmyolo_ema._upstream import norms_of
from mmyolo_ema.models.fully_sharded import is_cut, local, reshard, whole
from mmyolo_ema.models.module_watch import ModuleWatch
from mmyolo_ema.models.tensor_references import TensorReference, tensor_references

_DEVICE = attrgetter('device')
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


class NotFinite(NamedTuple):
    """Names of the tensors that hold NaN or infinity, on any process."""

    parameters: list[str]
    buffers: list[str]


class FiniteCheck:
    """Tells which tensors of a model that an average takes in are not finite, on any process.

    Looked at are its parameters and the floating buffers that a checkpoint holds. What is not finite at the beginning,
    such as an attention mask, is not looked at: there is nothing to lose.

    Args:
        model: The bare model.
        beginning: What the average holds now, under the names of the model: its average, or the model itself.
    """

    def __init__(self, model: nn.Module, beginning: nn.Module) -> None:
        self._model = model
        self._ignored = {
            name
            for name, reference in tensor_references(beginning)
            if _can_be_looked_at(reference) and not whole(reference.tensor).isfinite().all()
        }
        self._large: set[str] = set()
        self._list()

    def look(self) -> NotFinite:
        """Returns the names of what is not finite, the same on each process. Waits for the model's device once."""
        if not (self._watch.is_unchanged() and list(map(_DEVICE, self._tensors)) == self._devices):
            self._list()
        norms = self._norms()
        if all(map(math.isfinite, norms)):
            return NotFinite([], [])
        large = {name for name, norm in zip(self._names, norms) if math.isinf(norm)} - self._large
        if large:
            # The norm overflows before the largest finite number does, the maximum does not.
            self._large |= large
            self._list()
            return self.look()
        bad = [name for name, norm in zip(self._names, norms) if not math.isfinite(norm)]
        return NotFinite(
            [name for name in bad if name in self._parameters], [name for name in bad if name not in self._parameters]
        )

    def _list(self) -> None:
        reshard(self._model)
        distinct = {
            id(reference.tensor): (name, reference)
            for name, reference in tensor_references(self._model)
            if _can_be_looked_at(reference)
        }
        looked_at = {name: reference for name, reference in distinct.values() if name not in self._ignored}
        self._parameters = {name for name, reference in looked_at.items() if reference.is_parameter}
        groups = defaultdict(list)
        for name, reference in looked_at.items():
            tensor = reference.tensor
            groups[tensor.device, tensor.dtype, name in self._large].append((name, tensor))
        #: Tensors of one device and dtype, and whether their norm would overflow.
        self._groups = [([tensor for _, tensor in group], is_large) for (_, _, is_large), group in groups.items()]
        self._names = [name for group in groups.values() for name, _ in group]
        self._tensors = [tensor for group, _ in self._groups for tensor in group]
        self._devices = list(map(_DEVICE, self._tensors))
        self._is_cut = any(map(is_cut, self._tensors))
        self._watch = ModuleWatch(self._model.modules())

    def _norms(self) -> list[float]:
        """Returns the norm of each tensor, summed over the processes: not finite if one is not."""
        if not self._tensors:
            return []
        with torch.inference_mode():
            groups = (
                [([*map(local, group)], is_large) for group, is_large in self._groups] if self._is_cut else self._groups
            )
            norms = torch.cat(
                [
                    torch.stack(_maxima(group) if is_large else norms_of(group)).to(self._devices[0])
                    for group, is_large in groups
                ]
            )
        if get_world_size() > 1:
            # In a precision that all backends know, and so that the sum of the largest finite numbers is finite.
            norms = norms.to(torch.promote_types(norms.dtype, torch.float32)) / (2 * get_world_size())
            all_reduce(norms, op='sum')
        return norms.tolist()


def _maxima(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.abs().max() if tensor.numel() else tensor.new_zeros(()).abs() for tensor in tensors]


def _can_be_looked_at(reference: TensorReference) -> bool:
    """Whether a tensor is stored and of a kind that torch can tell the finiteness of."""
    tensor = reference.tensor
    return reference.is_persistent and tensor.dtype in _DTYPES and tensor.layout is torch.strided
