"""Noticing NaN and infinity in a model before they are averaged."""

from collections import defaultdict
from operator import attrgetter

import torch
from mmengine.dist import all_reduce, get_world_size
from torch import Tensor, nn

from mmyolo_ema.models.module_watch import ModuleWatch
from mmyolo_ema.models.slots import Slot, slots

__all__ = ['FiniteCheck']

_DEVICE = attrgetter('device')
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)


class FiniteCheck:
    """Tells whether all tensors of a model that an average takes in are finite, on all processes.

    These are its parameters and the floating buffers that a checkpoint holds. What is not finite at the beginning,
    such as an attention mask, is not looked at: there is nothing to lose.

    Args:
        model: The bare model.
        beginning: What the average holds now, under the names of the model: its average, or the model itself.
    """

    def __init__(self, model: nn.Module, beginning: nn.Module) -> None:
        self._model = model
        self._ignored = {name for name, slot in slots(beginning)
                         if _can_be_looked_at(slot) and not slot.tensor.isfinite().all()}
        self._list()

    def passes(self) -> bool:
        """Whether all are finite; the same answer on each process. Waits for the model's device once."""
        if not (self._watch.is_unchanged() and list(map(_DEVICE, self._tensors.values())) == self._devices):
            self._list()
        if not self._tensors or self._agreed(self._all_norms_are_finite()):
            return True
        # A norm overflows before the largest finite number does.
        return self._agreed(torch.tensor(not self.names(), device=self._devices[0]))

    def names(self) -> list[str]:
        """Returns the names of the tensors that are not finite in this process; looks at each by itself."""
        return [name for name, tensor in self._tensors.items() if not tensor.isfinite().all()]

    def _list(self) -> None:
        distinct = {id(slot.tensor): (name, slot.tensor) for name, slot in slots(self._model)
                    if _can_be_looked_at(slot)}
        self._tensors: dict[str, Tensor] = {
            name: tensor for name, tensor in distinct.values() if name not in self._ignored
        }
        self._devices = list(map(_DEVICE, self._tensors.values()))
        self._watch = ModuleWatch(self._model.modules())
        groups = defaultdict(list)
        for tensor in self._tensors.values():
            groups[tensor.device, tensor.dtype].append(tensor)
        self._groups = list(groups.values())

    def _all_norms_are_finite(self) -> Tensor:
        """Returns a flag on the first device, without waiting for it."""
        with torch.inference_mode():
            flags = [torch.stack(torch._foreach_norm(group)).isfinite().all() for group in self._groups]
            return torch.stack([flag.to(self._devices[0]) for flag in flags]).all()

    @staticmethod
    def _agreed(flag: Tensor) -> bool:
        """Whether a flag is true on all processes."""
        if get_world_size() > 1:
            flag = flag.to(torch.uint8)
            all_reduce(flag, op='min')
        return bool(flag)


def _can_be_looked_at(slot: Slot) -> bool:
    """Whether a tensor is stored and of a kind that torch can tell the finiteness of."""
    tensor = slot.tensor
    return slot.is_persistent and tensor.dtype in _DTYPES and tensor.layout is torch.strided and tensor.numel() > 0
