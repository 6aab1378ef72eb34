"""Putting the average's weights into the model, and the model's own back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Optional

import torch
from torch import Tensor, nn

from mmyolo_ema.hooks.structure import Structure, in_mode
from mmyolo_ema.models.fully_sharded import is_cut, local, part_of, reshard
from mmyolo_ema.models.shards import AnyShards
from mmyolo_ema.models.tensor_references import check_same_tensors, tensor_references, unwrap


class WeightSwap:
    """The weights of an average in the place of a model's own.

    The model's parameters are pointed at the memory of the average's. So they are not copied, unless the average is
    kept on another device or in another dtype. Buffers are copied, because a validation may write to them, and so are
    frozen weights that the average shares with the model. The model's own tensors and their memory are remembered
    beforehand, so that they can be given back whatever happened meanwhile, also if the swap itself was interrupted, or
    layers were fused.

    A layer may change its weights when its mode changes, as those of LoRA do, which merge them for evaluation. So the
    model gets its own back in the mode that it was in before.

    A parameter that ``fully_shard`` has cut is copied too, each process its part, and the raw part is set aside.

    A buffer may have another shape than the average's, or get one meanwhile, as a table does that follows the size of
    the images. Then the model keeps its own.

    Args:
        averaged: The module that holds the averaged tensors.
        model: The model, bare or wrapped.
        shards: What this process has of an average of a model that is cut, if that is not whole.

    Raises:
        ValueError: If the names of their tensors or the shapes of parameters differ.

    Example:
        >>> import torch
        >>> averaged, model = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        >>> swap = WeightSwap(averaged, model)
        >>> swap.swap_in()
        >>> torch.equal(model.weight, averaged.weight)
        True
        >>> swap.swap_out()
        >>> torch.equal(model.weight, averaged.weight)
        False
    """

    def __init__(self, averaged: nn.Module, model: nn.Module, shards: Optional[AnyShards] = None) -> None:
        reshard(unwrap(model))
        averages, raw = dict(tensor_references(unwrap(averaged))), dict(tensor_references(unwrap(model)))
        check_same_tensors(averages, raw)
        self._model, self._shards = unwrap(model), shards
        self._structure = Structure(self._model)
        self._training = self._model.training
        self._pairs = [
            (reference, reference.tensor, _raw(reference.tensor), averages[name].tensor)
            for name, reference in raw.items()
            if name in averages and reference.tensor.shape == averages[name].tensor.shape
        ]

    def swap_in(self) -> None:
        """Gives the model the average's weights."""
        reshard(self._model)
        for reference, tensor, raw, averaged in self._pairs:
            if is_cut(tensor):
                part = self._shards.own_part(averaged, tensor)[0] if self._shards else part_of(averaged, tensor)
                local(tensor).copy_(part)
                continue
            copied = not reference.is_parameter or _share_memory(averaged, raw)
            tensor.data = averaged.data.to(raw.device, raw.dtype, copy=copied)

    def swap_out(self) -> None:
        """Gives the model its own modules and weights back; does no harm if it has them."""
        reshard(self._model)
        self._structure.restore()
        with in_mode(self._model, self._training):
            self._restore()

    def _restore(self) -> None:
        for reference, tensor, raw, _ in self._pairs:
            if is_cut(tensor):
                local(tensor).copy_(raw)
            else:
                tensor.data = raw
            current = reference.holder.get(reference.key)
            if reference.is_parameter or current is None or current.shape == raw.shape:
                reference.holder[reference.key] = tensor

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Gives the model its own weights for a moment."""
        reshard(self._model)
        self._structure.restore()
        with in_mode(self._model, self._training):
            self._restore()
            try:
                yield
            finally:
                self.swap_in()


def _raw(tensor: Tensor) -> Tensor:
    """Returns what a tensor has, in memory that a swap leaves alone."""
    # fully_shard reads from memory of its own, so that a part cannot be pointed elsewhere.
    return local(tensor).clone() if is_cut(tensor) else tensor.data


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.layout is torch.strided and one.data_ptr() == other.data_ptr()
