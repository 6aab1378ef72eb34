"""An average shared out among the processes of a training, each of which keeps a range of its elements."""

import math
from collections import defaultdict
from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import NamedTuple, Union

import torch
from mmengine.dist import broadcast, get_rank, get_world_size
from torch import Tensor

from mmyolo_ema.models.fully_sharded import LocalParts


class Range(NamedTuple):
    """Elements ``start`` to ``stop`` of one tensor in a row of tensors."""

    tensor: int
    start: int
    stop: int


def split(sizes: list[int], parts: int) -> list[list[Range]]:
    """Cuts a row of tensors into contiguous parts whose numbers of elements differ by one at most.

    Args:
        sizes: Number of elements of each tensor.
        parts: How many parts to make.

    Example:
        >>> split([2, 4], 2)
        [[Range(tensor=0, start=0, stop=2), Range(tensor=1, start=0, stop=1)], [Range(tensor=1, start=1, stop=4)]]
    """
    starts, total = list(accumulate(sizes, initial=0)), sum(sizes)
    cuts = [total * part // parts for part in range(parts + 1)]
    return [
        [
            Range(index, max(low - start, 0), min(high - start, size))
            for index, (start, size) in enumerate(zip(starts, sizes))
            if max(low, start) < min(high, start + size)
        ]
        for low, high in pairwise(cuts)
    ]


def can_be_cut(averaged: Tensor, source: Tensor) -> bool:
    """Whether ranges of two tensors' memory hold the elements of one another: both are dense, in the same order."""
    return (
        averaged.layout is source.layout is torch.strided
        and averaged.stride() == source.stride()
        and averaged.stride() == torch.empty_like(averaged, device='meta').stride()
        and (averaged.is_floating_point() or averaged.is_complex())
    )


class Shards:
    """The ranges of an average's tensors that this process keeps, in memory of their own.

    It assumes that all processes hold the same model after each step, as they do under DistributedDataParallel. Then
    each can average its range alone. The tensors keep their shapes, but have no memory and read as NaN until
    :meth:`gather`.

    All processes must make this with the same tensors in the same order.

    Args:
        tensors: Distinct whole tensors of the average that :func:`can_be_cut`.
    """

    def __init__(self, tensors: list[Tensor]) -> None:
        rows = defaultdict(list)
        for tensor in tensors:
            rows[tensor.device, tensor.dtype].append(tensor)
        self._rows = [_Row(row) for row in rows.values()]
        self._strides = {id(tensor): tensor.stride() for tensor in tensors}
        self._own = {id(tensor): (memory, own) for row in self._rows for tensor, memory, own in row.own()}
        for tensor in tensors:
            tensor.data = tensor.new_full((), math.nan).expand(tensor.shape)

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._strides

    def has_part(self, tensor: Tensor) -> bool:
        """Whether this process updates something of a tensor: a range of it, or all, if it is not shared out."""
        return tensor not in self or id(tensor) in self._own

    def own_part(self, averaged: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the range of a tensor that this process keeps, and that of its source, flat.

        Raises:
            ValueError: If the source has its elements in another order by now.
        """
        if source.stride() != self._strides[id(averaged)]:
            raise ValueError(
                f'a parameter of the model has the strides {source.stride()} now, and had '
                f'{self._strides[id(averaged)]} when its average was shared out among the processes: '
                'change the memory format of the model before the training'
            )
        memory, (_, start, stop) = self._own[id(averaged)]
        return memory, _flat(source)[start:stop]

    def gather(self) -> None:
        """Makes the tensors whole on all processes, which must all call this."""
        # No tensor changes until all are there, so that an interruption loses nothing.
        for tensor, whole in [pair for row in self._rows for pair in row.gathered()]:
            tensor.data = whole


#: What a process has of an average that is shared out, by whichever cut.
AnyShards = Union[Shards, LocalParts]


class _Row:
    """Tensors of one device and dtype, as if they lay one after another."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors
        self._like = [torch.empty_like(tensor, device='meta') for tensor in tensors]
        self._parts = split([tensor.numel() for tensor in tensors], get_world_size())
        own = [_flat(tensors[index])[start:stop] for index, start, stop in self._parts[get_rank()]]
        self._memory = torch.cat(own or [tensors[0].new_empty(0)])

    def own(self) -> Iterator[tuple[Tensor, Tensor, Range]]:
        """Yields each tensor that this process has a range of, that range's memory, and the range."""
        part = self._parts[get_rank()]
        for memory, own in zip(_cut(self._memory, part), part):
            yield self._tensors[own.tensor], memory, own

    def gathered(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields each tensor and what it is as a whole."""
        wholes = [torch.empty_like(like, device=self._memory.device) for like in self._like]
        for rank, part in enumerate(self._parts):
            size = sum(stop - start for _, start, stop in part)
            memory = self._memory if rank == get_rank() else self._memory.new_empty(size)
            broadcast(memory.view(torch.uint8), src=rank)  # as bytes, because not all backends know all dtypes
            for values, (index, start, stop) in zip(_cut(memory, part), part):
                _flat(wholes[index])[start:stop] = values
        yield from zip(self._tensors, wholes)


def _cut(memory: Tensor, part: list[Range]) -> tuple[Tensor, ...]:
    return memory.split([stop - start for _, start, stop in part]) if part else ()


def _flat(tensor: Tensor) -> Tensor:
    """Returns the elements of a dense tensor as they lie in memory."""
    return tensor.detach().as_strided((tensor.numel(),), (1,))
