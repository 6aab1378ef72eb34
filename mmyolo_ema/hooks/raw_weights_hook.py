"""Test the raw weights of an EMA checkpoint instead of the averaged ones."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmyolo_ema.checkpoint import raw_weights
from mmyolo_ema.registry import HOOKS


@HOOKS.register_module()
class RawWeightsHook(Hook):
    """Makes the runner load the raw weights of a checkpoint, which the optimizer trained.

    For testing only: a run that resumes needs both kinds where the EMAHook left them. It acts before every other
    hook, so that an EMAHook in the same config sees the raw weights too.

    Raises:
        ValueError: When a checkpoint is loaded that holds no average.

    Example:
        >>> # in a config, or: tools/test.py CONFIG CHECKPOINT --weights raw
        >>> custom_hooks = [dict(type='mmyolo_ema.RawWeightsHook')]
    """

    priority = 'HIGHEST'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Puts the raw weights where the runner looks for weights.

        Args:
            runner (Runner): The runner that loads.
            checkpoint (dict): What it loaded; changed in place.
        """
        checkpoint['state_dict'] = raw_weights(checkpoint)
