"""Frozen weights: the average has them in the model's memory, until somebody trains them."""

import weakref
from typing import Any

from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook


class SharedMemory:
    """Tensors of an average that are pointed at the memory of the model's.

    Before each step of any optimizer those that need gradients by now get memory of their own, and in it the weight as
    it was before the step.

    Args:
        pairs: Each tensor of the average, and the equal one of the model.
    """

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self.pairs = pairs
        for averaged, source in pairs:
            averaged.data = source.data
        if pairs:
            # torch keeps the function for the rest of the process; the average must not be kept with it.
            own = weakref.ref(self)

            def part(*_: Any) -> None:
                shared = own()
                if shared is not None and shared.is_trained():
                    shared.part(trained_only=True)

            weakref.finalize(self, register_optimizer_step_pre_hook(part).remove)

    def is_trained(self) -> bool:
        """Whether a tensor needs gradients."""
        return any(source.requires_grad for _, source in self.pairs)

    def part(self, trained_only: bool = False) -> None:
        """Gives the average's tensors memory of their own; the plan of the next update sees it.

        Args:
            trained_only: Whether those that are still frozen go on to share it.
        """
        for averaged, source in self.pairs:
            if source.requires_grad or not trained_only:
                averaged.data = averaged.data.clone()
