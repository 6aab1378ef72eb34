"""Working with the average's weights for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from mmyolo_ema.hooks.structure import Structure
from mmyolo_ema.models.slots import check_same_tensors, slots, unwrap

__all__ = ['Loan']


class Loan:
    """The weights of an average in the place of a model's own.

    The model's parameters are pointed at the memory of the average's. So they are not copied, unless the average is
    kept on another device or in another dtype. Buffers are copied, because a validation may write to them. The model's
    own tensors and their memory are remembered beforehand, so that they can be given back whatever happened meanwhile,
    also if the exchange itself was interrupted, or layers were fused.

    A buffer may have another shape than the average's, or get one meanwhile, as a table does that follows the size of
    the images. Then the model keeps its own.

    Args:
        averaged: The module that holds the averaged tensors.
        model: The model, bare or wrapped.

    Raises:
        ValueError: If the names of their tensors or the shapes of parameters differ.

    Example:
        >>> import torch
        >>> averaged, model = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
        >>> loan = Loan(averaged, model)
        >>> loan.begin()
        >>> torch.equal(model.weight, averaged.weight)
        True
        >>> loan.end()
        >>> torch.equal(model.weight, averaged.weight)
        False
    """

    def __init__(self, averaged: nn.Module, model: nn.Module) -> None:
        lent, own = dict(slots(unwrap(averaged))), dict(slots(unwrap(model)))
        check_same_tensors(lent, own)
        self._structure = Structure(unwrap(model))
        self._lent = [(slot, slot.tensor, slot.tensor.data, lent[name].tensor) for name, slot in own.items()
                      if name in lent and slot.tensor.shape == lent[name].tensor.shape]

    def begin(self) -> None:
        """Gives the model the average's weights."""
        for slot, tensor, own, averaged in self._lent:
            tensor.data = averaged.data.to(own.device, own.dtype, copy=not slot.is_parameter)

    def end(self) -> None:
        """Gives the model its own modules and weights back; does no harm if it has them."""
        self._structure.restore()
        for slot, tensor, own, _ in self._lent:
            tensor.data = own
            current = slot.holder.get(slot.key)
            if slot.is_parameter or current is None or current.shape == own.shape:
                slot.holder[slot.key] = tensor

    @contextmanager
    def interrupted(self) -> Iterator[None]:
        """Gives the model its own weights for a moment."""
        self.end()
        try:
            yield
        finally:
            self.begin()
