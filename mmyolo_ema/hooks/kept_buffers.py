"""Leaving buffers out of an update, because the model's hold NaN or infinity."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import print_log
from torch import nn

__all__ = ['KeptBuffers']


class KeptBuffers:
    """Keeps what an average holds in buffers that are not finite in the model, and says so once for each.

    Parameters may well go on without them: BatchNorm trains with the statistics of the batch.

    Args:
        averaged: The module that holds the averaged tensors, of any class of averages.
    """

    def __init__(self, averaged: nn.Module) -> None:
        self._averaged = averaged
        self._announced: set[str] = set()

    @contextmanager
    def unchanged(self, names: list[str]) -> Iterator[None]:
        """Undoes what is done to these buffers meanwhile.

        Args:
            names: Their names in the model; usually none.
        """
        if not names:
            yield
            return
        self._announce(names)
        buffers = dict(self._averaged.named_buffers(remove_duplicate=False))
        kept = [(buffers[name], buffers[name].clone()) for name in names]
        yield
        for buffer, value in kept:
            buffer.copy_(value)

    def _announce(self, names: list[str]) -> None:
        new = [name for name in names if name not in self._announced]
        self._announced.update(new)
        if new:
            print_log(
                f'EMA: NaN or infinity in the buffer{"s" if len(new) > 1 else ""} {", ".join(new[:5])}'
                f'{" and others" if len(new) > 5 else ""} of the model. The average keeps its last finite value there '
                'and follows all else. If the buffers are statistics of BatchNorm, tools/posthoc_ema.py build '
                '--bn-batches measures them anew.', logger='current', level=logging.WARNING)
