"""Which weights are in a checkpoint, and by which names.

MMEngine's EMAHook saves the averaged weights under ``state_dict``, where every
loader looks, and the raw ones, which the optimizer trains, under
``ema_state_dict`` with the prefix ``module.``: the name lies.
"""

from collections.abc import Iterable
from typing import Any, Optional

from torch import Tensor
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX

__all__ = ['PREFIX', 'averaged_weights', 'has_ema', 'only_kind', 'raw_weights', 'tensors', 'updates_in', 'weights_of']

#: What the names under ``ema_state_dict`` begin with.
PREFIX = 'module.'


def has_ema(checkpoint: dict) -> bool:
    """Whether a checkpoint holds an average beside the raw weights."""
    return isinstance(checkpoint.get('ema_state_dict'), dict)


def raw_weights(checkpoint: dict) -> dict[str, Any]:
    """Returns the raw weights: those that the optimizer trained.

    Args:
        checkpoint: As :func:`read` returns it.

    Returns:
        The tensors, and what modules keep besides, by the names that they have in the model.

    Raises:
        ValueError: If the checkpoint holds no average, so that its only weights are under ``state_dict``.
    """
    if not has_ema(checkpoint):
        raise ValueError("it holds no EMA (no 'ema_state_dict'), so there are no raw weights beside its only ones, "
                         "which --weights ema stands for")
    stored = checkpoint['ema_state_dict'].items()
    return {name[len(PREFIX):]: value for name, value in stored if isinstance(name, str) and name.startswith(PREFIX)}


def averaged_weights(checkpoint: dict) -> dict[str, Any]:
    """Returns the averaged weights, or the only ones of a checkpoint without an average.

    Args:
        checkpoint: As :func:`read` returns it.

    Returns:
        As :func:`raw_weights`; a prefix ``module.``, from a model wrapper, is left out.
    """
    return {name.removeprefix(PREFIX): value for name, value in checkpoint['state_dict'].items()
            if isinstance(name, str)}


def only_kind(checkpoint: dict) -> str:
    """Returns which weights a file without an average holds: 'ema' or 'raw' as it was extracted, otherwise 'only'."""
    meta = checkpoint.get('meta')
    origin = meta.get('mmyolo_ema') if isinstance(meta, dict) else None
    kind = origin.get('weights') if isinstance(origin, dict) else None
    return kind if kind in ('ema', 'raw') else 'only'


def weights_of(checkpoint: dict, kind: str) -> dict[str, Any]:
    """Returns one set of weights.

    Args:
        checkpoint: As :func:`read` returns it.
        kind: 'ema' for the averaged weights, or the only ones of a file that does not say which they are; 'raw'.

    Raises:
        ValueError: If the file does not hold them.
    """
    if has_ema(checkpoint):
        return raw_weights(checkpoint) if kind == 'raw' else averaged_weights(checkpoint)
    stored = only_kind(checkpoint)
    if stored != kind and (stored, kind) != ('only', 'ema'):
        known = 'one set of weights' if stored == 'only' else f'the {stored} weights'
        raise ValueError(f'it holds {known} only, so that there is nothing for --weights {kind}')
    return averaged_weights(checkpoint)


def updates_in(checkpoint: dict) -> Optional[int]:
    """Returns how many updates the average in a checkpoint has had, None if it does not say."""
    steps = checkpoint['ema_state_dict'].get('steps')
    says = isinstance(steps, int) or (isinstance(steps, Tensor) and steps.numel() == 1)
    return int(steps) if says else None


def tensors(state_dict: dict) -> Iterable[tuple[str, Tensor]]:
    """Yields the parameters and buffers of a state; the extra state of a module may be a tensor of any shape."""
    return ((name, value) for name, value in state_dict.items()
            if isinstance(name, str) and isinstance(value, Tensor) and not value.is_meta
            and not name.endswith(_EXTRA_STATE_KEY_SUFFIX))
