"""Which tensor of an average follows which tensor of its source.

Finding the tensors by name takes a walk over all modules, many times as long
as an update of them. So they are found once, and before each update a glance
tells whether what was found still holds.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from copy import deepcopy
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor, nn

from mmyolo_ema._upstream import copy_all, lerp_all
from mmyolo_ema.models.fully_sharded import is_cut, local
from mmyolo_ema.models.module_watch import ModuleWatch
from mmyolo_ema.models.precision import widen
from mmyolo_ema.models.selection import Selection
from mmyolo_ema.models.shards import AnyShards, can_be_cut
from mmyolo_ema.models.shared_memory import SharedMemory
from mmyolo_ema.models.tensor_references import (
    TensorReference,
    check_same_tensors,
    named_modules,
    tensor_references,
    unwrap,
)

# In bytes, so that it tells another dtype too.
_SIZE = attrgetter('nbytes')

# Of what is on a GPU, so many bytes at a time are converted to another dtype or device, or one tensor.
_CONVERTED_BYTES = 16 * 2**20
# On a CPU so many bytes are updated at a time: what several averages follow then comes from memory once.
_CACHED_BYTES = 4 * 2**20


class Pair(NamedTuple):
    """A tensor of an average and the one that it follows."""

    averaged: Tensor
    source: Tensor
    #: Where the average holds it.
    reference: TensorReference
    #: All that the model has for it.
    names: list[str]


class Group(NamedTuple):
    """Tensors that one fused call updates: all the averaged ones have one device and dtype."""

    averaged: list[Tensor]
    source: list[Tensor]
    #: Tensors like the averaged ones, for sources of another device or dtype; None for those of the same.
    converted: Optional[list[Tensor]]

    def move(self, momentum: float) -> None:
        """Moves the averaged tensors towards the source, whose share becomes ``momentum``: 1 copies."""
        if momentum == 1:
            copy_all(self.averaged, self.source)
        elif momentum:
            if self.converted is not None:
                copy_all(self.converted, self.source)
            lerp_all(self.averaged, self.source if self.converted is None else self.converted, momentum)


class TensorPlan:
    """The tensors of an average and of its source, paired by name and grouped for fused calls.

    Args:
        averaged: The module that holds the averaged tensors.
        model: The model whose tensors they follow, bare or wrapped for
            distributed training or by ``torch.compile``.
        update_buffers: Whether persistent buffers are averaged, as parameters
            are. Otherwise they are copied.
        selection: Which tensors are averaged, by their names. The others are
            copied.
        dtype: What averages with fewer bits are converted to, if not None.
        shards: What this process keeps of tensors that are shared out among
            processes, if any are.

    Attributes:
        averages (list[Group]): Tensors to average: floating and complex ones.
        copies (list[Group]): Tensors to copy: integers, flags, buffers that no
            checkpoint holds, that hold infinities or that belong to
            quantization, what the selection lacks and, without
            ``update_buffers``, all buffers.
        shared (SharedMemory): Frozen parameters, which equal their average.
        divisible (list[Tensor]): Parameters of the average that could be shared
            out, in an order that all processes have.
        extra_states (list[tuple[nn.Module, nn.Module]]): Modules of the average
            and of the source that keep more than tensors in their state.

    Raises:
        ValueError: If the names of the tensors or the shapes of parameters
            differ, if tensors that the average shares are not shared in the
            model any more, or if two overlap in memory. A buffer of another
            shape starts anew, as a copy.
    """

    def __init__(
        self,
        averaged: nn.Module,
        model: nn.Module,
        update_buffers: bool,
        selection: Selection,
        dtype: Optional[torch.dtype] = None,
        shards: Optional[AnyShards] = None,
    ) -> None:
        average, source = unwrap(averaged), unwrap(model)
        distinct = _distinct_pairs(average, source)
        # Nothing to update, but one of them may grow in place.
        empty = [pair.source for pair in distinct if not pair.source.numel()]
        pairs = [pair for pair in distinct if pair.averaged.numel()]
        treated: dict[str, list[Pair]] = defaultdict(list)
        for pair in pairs:
            treated[_treatment(pair, update_buffers, selection, dtype)].append(pair)
        for pair in treated['averaged']:
            widen(pair.averaged, dtype)
        self.divisible = [
            pair.averaged
            for pair in treated['averaged'] + treated['copied']
            if pair.reference.is_parameter and can_be_cut(pair.averaged, pair.source)
        ]
        # Small tensors first: what holds() has looked at is still near the processor when they are updated.
        kept = {
            kind: sorted(
                (pair for pair in treated[kind] if shards is None or shards.has_part(pair.averaged)),
                key=lambda pair: pair.averaged.numel(),
            )
            for kind in ('averaged', 'copied')
        }
        moved, copied = ([_own_part(pair, shards) for pair in part] for part in kept.values())
        updated = [pair for pair in moved + copied if pair.averaged.layout is torch.strided]
        _own_memory(updated, pairs)
        _check_overlap(updated)
        self.averages, self.copies = _grouped(moved), _grouped(copied)
        self.shared = SharedMemory([(pair.averaged, pair.source) for pair in treated['shared']])
        self.extra_states = _extra_states(average, source)
        self._average, self._model, self._update_buffers = averaged, model, update_buffers
        self._remember([tensor for part in kept.values() for pair in part for tensor in pair[:2]] + empty)

    def holds(self, averaged: nn.Module, model: nn.Module, update_buffers: bool) -> bool:
        """Whether this plan is for these modules and they still hold the tensors that it lists."""
        return (
            averaged is self._average
            and model is self._model
            and update_buffers == self._update_buffers
            and self._watch.is_unchanged()
            and not self.shared.is_trained()
            and list(map(Tensor.data_ptr, self._tensors)) == self._addresses
            and list(map(_SIZE, self._tensors)) == self._sizes
            and [local(tensor).data_ptr() for tensor in self._cut] == self._local_addresses
        )

    def copy_extra_states(self) -> None:
        """Makes equal what modules keep in their state besides tensors."""
        for average, source in self.extra_states:
            with torch.no_grad():
                average.set_extra_state(deepcopy(source.get_extra_state()))

    def _remember(self, tensors: list[Tensor]) -> None:
        """Remembers what tells a change: what the modules hold, and where each tensor's memory is.

        An assignment to ``tensor.data``, as in ``model.double()``, keeps the object in its module, but not its memory,
        or not its size.
        """
        self._watch = ModuleWatch([*self._average.modules(), *self._model.modules()])
        held = tensors + [tensor for pair in self.shared.pairs for tensor in pair]
        self._tensors = [tensor for tensor in held if tensor.layout is torch.strided]
        self._addresses = list(map(Tensor.data_ptr, self._tensors))
        self._sizes = list(map(_SIZE, self._tensors))
        self._cut = list(filter(is_cut, held))
        self._local_addresses = [local(tensor).data_ptr() for tensor in self._cut]


def _distinct_pairs(average: nn.Module, source: nn.Module) -> list[Pair]:
    """Returns the tensors to update and what they follow, each distinct tensor of the source exactly once.

    The average is made to share what the source shares, and nothing else, because MMEngine's EMAHook exchanges the
    two in the order in which their modules yield them.
    """
    averaged_references, source_references = dict(tensor_references(average)), dict(tensor_references(source))
    check_same_tensors(averaged_references, source_references)
    names_of: dict[int, list[str]] = defaultdict(list)
    for name, reference in source_references.items():
        if name in averaged_references:
            names_of[id(reference.tensor)].append(name)
    _check_shared(averaged_references, list(names_of.values()))

    pairs = []
    for names in names_of.values():
        reference, followed = averaged_references[names[0]], source_references[names[0]].tensor
        tensor = reference.tensor
        if tensor.shape != followed.shape:
            tensor = followed.detach().to(tensor, copy=True)
        for place in map(averaged_references.__getitem__, names):
            place.holder[place.key] = tensor
        pairs.append(Pair(tensor, followed, reference, names))
    return pairs


def _own_part(pair: Pair, shards: Optional[AnyShards]) -> Pair:
    """Returns what this process keeps of a tensor, and what that follows: all, unless the tensor is shared out."""
    if shards is None or pair.averaged not in shards:
        return pair
    averaged, source = shards.own_part(pair.averaged, pair.source)
    return pair._replace(averaged=averaged, source=source)


def _check_shared(averaged: dict[str, TensorReference], groups: list[list[str]]) -> None:
    """Raises if one tensor of the average, under several names, would have to follow two tensors."""
    first_name: dict[int, str] = {}
    for names in groups:
        tensors = {id(averaged[name].tensor): name for name in names}
        for tensor, name in tensors.items():
            if tensor in first_name:
                raise ValueError(
                    f'{first_name[tensor]} and {name} are one tensor in the average, but two in the '
                    'model now. Build a new average from this model.'
                )
        first_name.update(tensors)


def _own_memory(updated: list[Pair], pairs: list[Pair]) -> None:
    """Gives tensors of the average memory that an in-place update can write: not the model's, and not expanded."""
    memories_of_source = {
        pair.source.untyped_storage().data_ptr()
        for pair in pairs
        if pair.source.layout is torch.strided and not is_cut(pair.source)
    }
    for averaged, *_ in updated:
        if averaged.untyped_storage().data_ptr() in memories_of_source or _overlaps_itself(averaged):
            averaged.data = averaged.data.clone(memory_format=torch.contiguous_format)


def _check_overlap(pairs: list[Pair]) -> None:
    """Raises if two tensors of the average share memory: what they share would be averaged twice."""
    spans = sorted((*_span(pair.averaged), pair.names[0]) for pair in pairs)
    for (_, end, name), (start, _, other) in pairwise(spans):
        if start < end:
            raise ValueError(
                f'{name} and {other} are views of the same memory, which cannot be averaged. Give one of '
                'them memory of its own in the model: tensor.clone().'
            )


def _span(tensor: Tensor) -> tuple[int, int]:
    """Returns the addresses of a tensor's first byte and of the byte behind its last."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether several elements share memory, as in an expanded tensor."""
    return tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size()


def _treatment(pair: Pair, update_buffers: bool, selection: Selection, dtype: Optional[torch.dtype]) -> str:
    """Returns whether a tensor is 'averaged', 'copied', or 'shared' with the model."""
    averaged, source, reference, names = pair
    if (
        reference.is_parameter
        and not source.requires_grad
        and not is_cut(source)
        and not selection.includes(names)
        and averaged.layout is torch.strided
        and averaged.device == source.device
        and averaged.dtype in (source.dtype, dtype)
        and torch.equal(averaged, source.to(averaged.dtype))
    ):
        return 'shared'
    return 'averaged' if is_averaged(source, reference, update_buffers) and selection.has(names) else 'copied'


def is_averaged(source: Tensor, reference: TensorReference, update_buffers: bool) -> bool:
    """Whether a tensor is of a kind that is averaged."""
    if not (reference.tensor.is_floating_point() or reference.tensor.is_complex()):
        return False
    if reference.is_parameter or not update_buffers:
        return reference.is_parameter
    # A buffer with infinities is a mask, and the mean of two infinities is no number.
    return reference.is_persistent and not reference.is_of_quantizer and not source.isinf().any()


def _grouped(pairs: list[Pair]) -> list[Group]:
    """Groups pairs by the device and dtype of the averaged tensor, and by whether the source has the same."""
    groups: dict[tuple[Any, ...], list[Pair]] = defaultdict(list)
    for pair in pairs:
        kind = pair.averaged.device, pair.averaged.dtype
        groups[(*kind, (pair.source.device, pair.source.dtype) == kind)].append(pair)
    result = []
    for (device, dtype, is_same), group in groups.items():
        converted_bytes = math.inf if is_same else _CONVERTED_BYTES
        parts = list(_parts(group, _CACHED_BYTES if device.type == 'cpu' else converted_bytes))
        # All parts convert in the same memory, one after the other, so that a step allocates none.
        size = 0 if is_same else max(sum(pair.averaged.numel() for pair in part) for part in parts)
        memory = torch.empty(size, device=device, dtype=dtype)
        for part in parts:
            averaged = [pair.averaged for pair in part]
            result.append(
                Group(averaged, [pair.source for pair in part], None if is_same else _placed(averaged, memory))
            )
    return result


def _parts(pairs: list[Pair], size: float) -> Iterator[list[Pair]]:
    """Cuts a list where the averaged tensors have filled so many bytes."""
    part: list[Pair] = []
    filled = 0
    for pair in pairs:
        tensor_size = pair.averaged.numel() * pair.averaged.element_size()  # a sparse one has no nbytes
        filled += tensor_size
        if part and filled > size:
            yield part
            part, filled = [], tensor_size
        part.append(pair)
    yield part


def _placed(tensors: list[Tensor], memory: Tensor) -> list[Tensor]:
    """Returns tensors of the same shapes and strides, one after another in flat memory."""
    ends = list(accumulate(tensor.numel() for tensor in tensors))
    return [
        memory.as_strided(tensor.shape, torch.empty_like(tensor, device='meta').stride(), end - tensor.numel())
        for tensor, end in zip(tensors, ends)
    ]


def _extra_states(average: nn.Module, source: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    """Returns the modules, paired by name, that can give and take a state beside their tensors."""
    sources = dict(named_modules(source))
    return [
        (module, sources[name])
        for name, module in average.named_modules()
        if type(module).get_extra_state is not nn.Module.get_extra_state
        and type(module).set_extra_state is not nn.Module.set_extra_state
        and name in sources
    ]
