"""Going through weights that are too large to hold, a tensor at a time."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, Optional

import torch
from torch import Tensor

#: Stands for what a set does not hold.
ABSENT = object()

# Pages of a mapped file that were read count as memory of the process until the map is closed.
_MOST_BYTES = 32 * 2**20
_CHUNK = 2**20


def stream(*sets: Callable[[], Mapping[str, Any]]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yields each name with what it stands for in each of some sets of weights, or ABSENT.

    Args:
        *sets: Functions that open a set, such as by ``read(path, mmap=True)``. They are called again after every
            32 MB, so that memory does not fill up with what was read. So don't keep the tensors.
    """
    opened = [open_set() for open_set in sets]
    names = list(dict.fromkeys(chain.from_iterable(opened)))
    passed = 0
    for name in names:
        if passed > _MOST_BYTES:
            opened.clear()
            opened.extend(open_set() for open_set in sets)
            passed = 0
        values = tuple(weights.get(name, ABSENT) for weights in opened)
        passed += sum(value.nbytes for value in values if isinstance(value, Tensor))
        yield name, values
        del values


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yields the same numbers of dense tensors of one shape, a million at a time, in one dimension."""
    for parts in zip(*(tensor.resolve_conj().resolve_neg().reshape(-1).split(_CHUNK) for tensor in tensors)):
        # torch computes nothing in eight bits.
        yield tuple(part.float() if part.is_floating_point() and part.itemsize == 1 else part for part in parts)


def fingerprint(tensor: Tensor) -> Optional[bytes]:
    """Returns what tells the content of a tensor from others, and is the same for a copy.

    None for one without numbers or with equal ones only, as at the start of a training, which others equal by chance.
    """
    if tensor.numel() == 0:
        return None
    first = tensor.reshape(-1)[0]
    if all(bool((part == first).all()) for (part,) in chunks(tensor)):
        return None
    digest = hashlib.blake2b(f'{tensor.dtype}{tuple(tensor.shape)}'.encode())
    for (part,) in chunks(tensor):
        digest.update(part.contiguous().view(torch.uint8).numpy().data)
    return digest.digest()
