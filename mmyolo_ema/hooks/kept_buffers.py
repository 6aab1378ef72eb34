"""Leaving buffers out of an update."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from mmyolo_ema.models.tensor_references import tensor_references


@contextmanager
def unchanged(averaged: nn.Module, names: list[str]) -> Iterator[None]:
    """Undoes what is done to some buffers of an average meanwhile.

    Args:
        averaged: The module that holds the averaged tensors, of any class of averages.
        names: Names of the buffers; usually none.
    """
    references = dict(tensor_references(averaged)) if names else {}
    kept = [(references[name].tensor, references[name].tensor.clone()) for name in names]
    yield
    for buffer, value in kept:
        buffer.copy_(value)
