"""Test other weights of a checkpoint than those under ``state_dict``, which loaders take."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmyolo_ema.checkpoint import weights_of
from mmyolo_ema.registry import HOOKS


@HOOKS.register_module()
class StoredWeightsHook(Hook):
    """Makes the runner load one of the sets of weights in a checkpoint.

    For testing only: a run that resumes needs all of them where the EMAHook left them. It acts before every other
    hook, so that an EMAHook in the same config sees those weights too.

    Args:
        weights: 'ema', 'raw', or the name of a further average, as :func:`mmyolo_ema.checkpoint.weights_of` takes it.

    Raises:
        ValueError: When a checkpoint is loaded that does not hold them.

    Example:
        >>> # in a config, or: tools/test.py CONFIG CHECKPOINT --weights short
        >>> custom_hooks = [dict(type='mmyolo_ema.StoredWeightsHook', weights='short')]
    """

    priority = 'HIGHEST'

    def __init__(self, weights: str) -> None:
        self.weights = weights

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Puts the weights where the runner looks for them.

        Args:
            runner (Runner): The runner that loads.
            checkpoint (dict): What it loaded; changed in place.
        """
        checkpoint['state_dict'] = weights_of(checkpoint, self.weights)


@HOOKS.register_module()
class RawWeightsHook(StoredWeightsHook):
    """Makes the runner load the raw weights of a checkpoint, which the optimizer trained.

    Example:
        >>> # in a config, or: tools/test.py CONFIG CHECKPOINT --weights raw
        >>> custom_hooks = [dict(type='mmyolo_ema.RawWeightsHook')]
    """

    def __init__(self) -> None:
        super().__init__('raw')
