"""Mixed precision that trains on the CPU too."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.runner import autocast
from torch import nn

from mmyolo_ema.registry import OPTIM_WRAPPERS

__all__ = ['BFloat16OptimWrapper']


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Computes in bfloat16 where that is precise enough; weights, gradients and the average stay in float32.

    bfloat16 has the range of float32, so that no gradients have to be scaled. MMEngine's AmpOptimWrapper is for
    accelerators only.

    Args:
        **kwargs: As for MMEngine's OptimWrapper.

    Example:
        >>> # in a config, or: tools/train.py CONFIG --amp on a machine without a GPU
        >>> optim_wrapper = dict(type='mmyolo_ema.BFloat16OptimWrapper', optimizer=dict(type='SGD', lr=0.01))
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Computes what is inside it in bfloat16.

        Args:
            model (nn.Module): The model that trains.
        """
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield
