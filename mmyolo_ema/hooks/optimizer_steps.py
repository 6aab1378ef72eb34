"""Telling real optimizer steps from iterations."""

from typing import Union

from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch.optim import Optimizer

__all__ = ['OptimizerSteps']


class OptimizerSteps:
    """Tells in which iterations the optimizer made a step.

    Under gradient accumulation it makes one every few iterations, and a gradient scaler skips it if the gradients
    overflow. The optimizers themselves are asked, so that it does not matter which wrapper drives them. Where several
    step in one iteration, as a generator's and a discriminator's may, that counts once. Optimizers that are not
    torch's, such as DeepSpeed's, cannot be asked: every iteration counts then.

    Args:
        optim_wrapper: The runner's.
    """

    def __init__(self, optim_wrapper: Union[OptimWrapper, OptimWrapperDict]) -> None:
        wrappers = list(optim_wrapper.values()) if isinstance(optim_wrapper, OptimWrapperDict) else [optim_wrapper]
        optimizers = [getattr(wrapper, 'optimizer', None) for wrapper in wrappers]
        self._can_tell = all(isinstance(optimizer, Optimizer) for optimizer in optimizers)
        self._handles = [optimizer.register_step_post_hook(self._note)
                         for optimizer in optimizers if isinstance(optimizer, Optimizer)]
        self._stepped = False
        #: Iterations that one step takes, as far as the wrappers say so.
        self.accumulative_counts = min(getattr(wrapper, '_accumulative_counts', 1) for wrapper in wrappers)

    def stepped(self) -> bool:
        """Whether a step was made since this was asked last."""
        stepped, self._stepped = self._stepped or not self._can_tell, False
        return stepped

    def close(self) -> None:
        """Leaves the optimizers alone."""
        for handle in self._handles:
            handle.remove()

    def _note(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        # A fused optimizer is called for a skipped step too, and is told by the gradient scaler to do nothing.
        overflow = getattr(optimizer, 'found_inf', None)
        if overflow is None or not overflow.item():
            self._stepped = True
