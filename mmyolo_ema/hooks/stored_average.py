"""Putting an average into a checkpoint, and taking it out again."""

from copy import deepcopy
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce_params
from mmengine.model import BaseAveragedModel
from torch import Tensor, nn

from mmyolo_ema.checkpoint import PREFIX, has_ema, listed, misfits, raw_weights, updates_in
from mmyolo_ema.models.slots import slots

__all__ = ['copied_state', 'cpu_copies', 'exchange', 'load', 'origin', 'store', 'synchronize_buffers', 'unfit']


def store(checkpoint: dict, ema_model: BaseAveragedModel, has_begun: bool) -> None:
    """Puts an average into a checkpoint, under ``state_dict``, and the raw weights from there under ``ema_state_dict``.

    Args:
        checkpoint: What is about to be saved; changed in place. It gets CPU copies of the average.
        ema_model: The average.
        has_begun: Whether it has been updated. Otherwise the raw weights stand for it.
    """
    raw, stored = checkpoint['state_dict'], ema_model.state_dict()
    saved = cpu_copies({key: value for key, value in stored.items() if has_begun or not key.startswith(PREFIX)})
    for key in stored:
        name = key.removeprefix(PREFIX)
        if name == key:
            stored[key] = saved[key]
        else:
            stored[key] = raw[name]
            if has_begun:
                raw[name] = saved[key]
    checkpoint['ema_state_dict'] = stored


def synchronize_buffers(ema_model: BaseAveragedModel) -> None:
    """Makes the stored floating buffers of an average equal on all processes, which must all call this: their mean.

    Those that have no mean stay as they are: the scale of an observer for quantization, which belongs to its zero
    point, and what has another shape in another process, as a table may that follows the size of the images.
    """
    buffers = {name: slot.tensor for name, slot in slots(ema_model.module) if not slot.is_parameter
               and slot.is_persistent and not slot.is_of_quantizer and slot.tensor.is_floating_point()}
    shapes = all_gather_object({name: buffer.shape for name, buffer in buffers.items()})
    all_reduce_params([buffer for name, buffer in buffers.items()
                       if all(others.get(name) == buffer.shape for others in shapes)], op='mean')


def copied_state(model: nn.Module) -> dict[str, Any]:
    """Returns the state of a module in CPU copies, with the versions of its parts."""
    state = model.state_dict()
    state.update(cpu_copies(state))
    return state


def cpu_copies(state: dict[str, Any]) -> dict[str, Any]:
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
    for name, raw in raw_weights(checkpoint).items():
        place = PREFIX + name if PREFIX + name in weights else name
        averaged = weights.get(place)
        weights[place] = raw
        del stored[PREFIX + name]
        if averaged is not None:
            stored[PREFIX + name] = averaged


def origin(checkpoint: dict, resumes: bool) -> str:
    """Returns in words how an average goes on from a checkpoint.

    Args:
        checkpoint: What was loaded.
        resumes: Whether the run goes on with that of the checkpoint.
    """
    if not has_ema(checkpoint):
        return 'starts from a file without EMA, from its weights'
    updates = updates_in(checkpoint) or 0
    if resumes:
        return f'resumed at update {updates}'
    return f'starts anew from the averaged weights of {updates} updates in the file; its ramp starts again'


def load(ema_model: BaseAveragedModel, averaged: dict, updates: int) -> None:
    """Loads what fits into an average.

    Args:
        ema_model: The average.
        averaged: The averaged tensors, by the names that they have in the model, and what else the class stores.
        updates: How many updates it has had.
    """
    own = ema_model.state_dict()
    unfit = misfits(averaged, own).other
    fitting = {name: value for name, value in averaged.items() if name in own and name not in unfit}
    ema_model.load_state_dict(dict(fitting, steps=torch.tensor(updates)), strict=False)


def unfit(weights: dict, ema_model: BaseAveragedModel) -> str:
    """Returns in words which tensors do not fit the model, or nothing.

    Args:
        weights: Averaged or raw tensors, by the names that they have in the average.
        ema_model: The average, whose module is of the model's shape.
    """
    found = misfits(weights, ema_model.state_dict())
    # The count of updates is no weight, and older files have no count of batches.
    missing = [name for name in found.missing if name != 'steps' and not name.endswith('num_batches_tracked')]
    return ''.join(
        listed(title, [name.removeprefix(PREFIX) for name in names], most=20)
        for title, names in (('; not loaded, of another shape: ', list(found.other.values())),
                             ('; missing from the file: ', missing), ('; not in the model: ', found.unexpected)))
