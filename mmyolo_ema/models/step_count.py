"""Reading the count of updates without waiting for a GPU."""

from typing import Optional

from torch import Tensor

__all__ = ['StepCount']


class StepCount:
    """The number in a tensor, which a checkpoint stores, known without asking a GPU for it.

    Reading a tensor that is on a GPU waits for all work that the GPU has been given. So there the number goes along
    in Python, and is read only after someone else wrote to the tensor.
    """

    def __init__(self) -> None:
        self._steps: Optional[Tensor] = None
        self._version = float('nan')
        self._number = 0

    def read(self, steps: Tensor) -> int:
        """Returns the number in a tensor."""
        if steps.is_cpu or steps is not self._steps or _version(steps) != self._version:
            return int(steps)
        return self._number

    def add_one(self, steps: Tensor, number: int) -> None:
        """Adds one to a tensor whose number was read."""
        steps.add_(1)
        if not steps.is_cpu:
            self._steps, self._version, self._number = steps, _version(steps), number + 1


def _version(tensor: Tensor) -> float:
    """Returns a number that changes with each write to a tensor; made in inference mode, it has none: never equal."""
    return float('nan') if tensor.is_inference() else tensor._version
