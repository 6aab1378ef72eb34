"""Leaving buffers out of an update."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def unchanged(averaged: nn.Module, names: list[str]) -> Iterator[None]:
    """Undoes what is done to some buffers of an average meanwhile.

    Args:
        averaged: The module that holds the averaged tensors, of any class of averages.
        names: Names of the buffers; usually none.
    """
    buffers = dict(averaged.named_buffers(remove_duplicate=False)) if names else {}
    kept = [(buffers[name], buffers[name].clone()) for name in names]
    yield
    for buffer, value in kept:
        buffer.copy_(value)
