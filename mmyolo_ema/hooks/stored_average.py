"""Putting an average into a checkpoint, and taking it out again."""

from copy import deepcopy
from typing import Any

import torch
from mmengine.model import BaseAveragedModel
from torch import Tensor

from mmyolo_ema.checkpoint import PREFIX, Misfits, listed, misfits

__all__ = ['exchange', 'load', 'store']


def store(checkpoint: dict, ema_model: BaseAveragedModel, has_begun: bool) -> None:
    """Puts an average into a checkpoint, under ``state_dict``, and the raw weights from there under ``ema_state_dict``.

    Args:
        checkpoint: What is about to be saved; changed in place. It gets CPU copies of the average.
        ema_model: The average.
        has_begun: Whether it has been updated. Otherwise the raw weights stand for it.
    """
    raw, stored = checkpoint['state_dict'], ema_model.state_dict()
    averaged = _cpu_copies(stored)
    for key in stored:
        name = key.removeprefix(PREFIX)
        if name == key:
            stored[key] = averaged[key]
        else:
            stored[key] = raw[name]
            if has_begun:
                raw[name] = averaged[key]
    checkpoint['ema_state_dict'] = stored


def _cpu_copies(state: dict[str, Any]) -> dict[str, Any]:
    """Returns copies of tensors; names that share a tensor share its copy, so that it is stored once."""
    copies: dict[Any, Any] = {}
    result = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            place = (value.data_ptr(), value.shape, value.stride(), value.dtype) if _has_place(value) else name
            if place not in copies:
                copies[place] = value.detach().to('cpu', copy=True)
            result[name] = copies[place]
        else:
            result[name] = deepcopy(value)
    return result


def _has_place(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and tensor.numel() > 0


def exchange(checkpoint: dict) -> None:
    """Puts the raw weights of a loaded checkpoint under ``state_dict``, and the average under ``ema_state_dict``.

    Args:
        checkpoint: What was loaded; changed in place. A name that only the raw weights have is then missing from the
            average.
    """
    weights, stored = checkpoint['state_dict'], checkpoint['ema_state_dict']
    for key in [key for key in stored if key.startswith(PREFIX)]:
        name = key.removeprefix(PREFIX)
        raw, averaged = stored.pop(key), weights.get(name)
        weights[name] = raw
        if averaged is not None:
            stored[key] = averaged


def load(ema_model: BaseAveragedModel, stored: dict, strict: bool) -> str:
    """Loads what fits into an average, and returns in words what does not, or nothing.

    Args:
        ema_model: The average.
        stored: Its state, as under ``ema_state_dict`` after :func:`exchange`.
        strict: Whether everything has to fit.

    Raises:
        ValueError: If not everything fits and ``strict`` is set. Nothing is loaded then.
    """
    own = ema_model.state_dict()
    found = misfits(stored, own)
    words = _in_words(found)
    if words and strict:
        raise ValueError(f'strict_load is set, but the checkpoint does not fit the model{words}. Leave strict_load out '
                         'to load what fits.')
    unfit = {name.partition(' ')[0] for name in found.other}
    ema_model.load_state_dict({name: value for name, value in stored.items() if name in own and name not in unfit},
                              strict=False)
    return words


def _in_words(found: Misfits) -> str:
    # Older files have no count of batches, and the count of updates is missing on purpose where the ramp starts again.
    missing = [name for name in found.missing if name != 'steps' and not name.endswith('num_batches_tracked')]
    return ''.join(
        listed(title, [name.removeprefix(PREFIX) for name in names], most=20)
        for title, names in (('; of another shape: ', found.other), ('; missing from the file: ', missing),
                             ('; not in the model: ', found.unexpected)))
