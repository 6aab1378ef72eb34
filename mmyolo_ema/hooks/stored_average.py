"""Putting an average into a checkpoint, and taking it out again."""

from copy import deepcopy
from typing import Any

import torch
from mmengine.dist import all_gather_object, all_reduce_params
from mmengine.model import BaseAveragedModel
from torch import Tensor, nn

from mmyolo_ema._upstream import add_own_state
from mmyolo_ema.checkpoint import (
    PREFIX,
    Mismatches,
    averaged_weights,
    has_ema,
    listed,
    load_fitting,
    raw_weights,
    updates_in,
)
from mmyolo_ema.checkpoint.weights import FURTHER, further_averages, place_of
from mmyolo_ema.hooks.sharing import gather
from mmyolo_ema.models import ExpMomentumEMA
from mmyolo_ema.models.fully_sharded import is_fully_sharded, whole
from mmyolo_ema.models.tensor_references import tensor_references


def store(checkpoint: dict[str, Any], averages: dict[str, BaseAveragedModel], has_begun: bool) -> None:
    """Puts averages into a checkpoint: the main one under ``state_dict``, and the raw weights from there in its place.

    Args:
        checkpoint: What is about to be saved; changed in place. It gets CPU copies of the averages.
        averages: The averages by name; the main one, 'ema', first.
        has_begun: Whether they have been updated. Otherwise the raw weights stand for the main one, and there are no
            others.
    """
    raw = checkpoint['state_dict']
    stored, *further = (_stored_state(average, raw) for average in averages.values())
    for key in stored:
        name = key.removeprefix(PREFIX)
        if name != key:
            averaged, stored[key] = stored[key], raw[name]
            if has_begun:
                raw[name] = averaged
    checkpoint['ema_state_dict'] = stored
    if further and has_begun:
        checkpoint[FURTHER] = dict(zip([*averages][1:], further))


def _stored_state(ema_model: BaseAveragedModel, raw: dict[str, Any]) -> dict[str, Any]:
    """Returns the state of an average in CPU copies; one of a dtype of its own in the model's or its ``save_dtype``."""
    state = whole_state(ema_model)
    state.update(cpu_copies(state))  # it has the versions of modules, too
    if isinstance(ema_model, ExpMomentumEMA) and ema_model.dtype is not None:
        converted: dict[int, Any] = {}
        for key, value in state.items():
            model = raw.get(key.removeprefix(PREFIX))
            if isinstance(value, Tensor) and isinstance(model, Tensor) and value.dtype != model.dtype:
                converted[id(value)] = value.to(ema_model.save_dtype or model.dtype)
        # Names of one tensor go on to share it.
        state.update({key: converted.get(id(value), value) for key, value in state.items()})
    return state


def whole_state(ema_model: BaseAveragedModel) -> dict[str, Any]:
    """Returns the state of an average with its count of updates.

    A hook of a module may remove what is not its own from a state, which all modules share.
    """
    state: dict[str, Any] = ema_model.state_dict()
    add_own_state(ema_model, state)
    return state


def synchronize_buffers(ema_model: BaseAveragedModel) -> None:
    """Makes the stored floating buffers of an average equal on all processes, which must all call this: their mean.

    Those that have no mean stay as they are: the scale of an observer for quantization, which belongs to its zero
    point, and what has another shape in another process, as a table may that follows the size of the images.

    An average that ``shard`` shares out among the processes is whole afterwards.
    """
    gather([ema_model])
    buffers = {
        name: reference.tensor
        for name, reference in tensor_references(ema_model.module)
        if not reference.is_parameter
        and reference.is_persistent
        and not reference.is_of_quantizer
        and reference.tensor.is_floating_point()
    }
    shapes = all_gather_object({name: buffer.shape for name, buffer in buffers.items()})
    all_reduce_params(
        [buffer for name, buffer in buffers.items() if all(others.get(name) == buffer.shape for others in shapes)],
        op='mean',
    )


def copied_state(model: nn.Module) -> dict[str, Any]:
    """Returns the state of a module in CPU copies, with the versions of its parts; names of one tensor share it.

    All processes must call this for one that torch has cut; FullyShardedDataParallel may leave the main process alone
    with the state.
    """
    state = model.state_dict()
    first: dict[int, str] = {}
    first_name = {name: first.setdefault(id(reference.tensor), name) for name, reference in tensor_references(model)}
    if is_fully_sharded(model):
        for name, value in state.items():
            first_value: Any = state.get(first_name.get(name, name), value)
            state[name] = whole(first_value)
    state.update(cpu_copies(state))
    return state


def cpu_copies(state: dict[str, Any]) -> dict[str, Any]:
    """Returns copies of tensors; names that share a tensor share its copy, so that it is stored once."""
    copies: dict[Any, Any] = {}
    result = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            place = place_of(value)
            if place not in copies:
                copies[place] = value.detach().to('cpu', copy=True)
            result[name] = copies[place]
        else:
            result[name] = deepcopy(value)
    return result


def exchange(checkpoint: dict[str, Any]) -> None:
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


def beginning(checkpoint: dict[str, Any], resumes: bool) -> str:
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


def load(
    averages: dict[str, BaseAveragedModel], model: nn.Module, checkpoint: dict[str, Any], goes_on: bool, updates: int
) -> list[Mismatches]:
    """Loads what fits into averages, as the model would load it.

    What the file lacks of the main one is the model's; what it lacks of another one is the main one's.

    Args:
        averages: The averages by name; the main one, 'ema', first.
        model: The bare model that they follow, before it loads the file.
        checkpoint: What was loaded, as it was stored.
        goes_on: Whether the averages of the file go on. Otherwise all start from the weights under ``state_dict``.
        updates: How many updates the main one has had.

    Returns:
        What average and model do not have in common with the file's: the main average first, then the raw weights, and
        those of further averages that the file has.
    """
    content = checkpoint if 'state_dict' in checkpoint else dict(state_dict=checkpoint)
    ema_model, *further = averages.values()
    _copy_tensors(model, ema_model)
    found = [load_fitting(raw_weights(content), ema_model.module)] if goes_on else []
    found.insert(0, load_fitting(averaged_weights(content), ema_model.module))
    own = (
        {name: value for name, value in content['ema_state_dict'].items() if not str(name).startswith(PREFIX)}
        if goes_on
        else {}
    )
    load_fitting(dict(own, steps=torch.tensor(updates)), ema_model)
    stored = further_averages(content) if goes_on else {}
    for name, average in zip([*averages][1:], further):
        _copy_tensors(ema_model.module, average)
        load_fitting(dict(steps=ema_model.steps), average)
        if name in stored:
            found.append(load_fitting(stored[name], average))
    return found


def _copy_tensors(source: nn.Module, average: BaseAveragedModel) -> None:
    """Copies parameters and buffers of one shape into an average; a state dictionary may not have them all."""
    if isinstance(average, ExpMomentumEMA):
        average.unshare()
    own = {name: reference.tensor for name, reference in tensor_references(average.module)}
    with torch.no_grad():
        for name, reference in tensor_references(source):
            if name in own and own[name].shape == reference.tensor.shape:
                own[name].copy_(whole(reference.tensor))


def unfit(found: Mismatches) -> str:
    """Returns in words which tensors do not fit the model, or nothing."""
    return ''.join(
        listed(title, names, most=20)
        for title, names in (
            ('; not loaded, of another shape or kind: ', list(found.shape.values())),
            ('; missing from the file: ', found.missing),
            ('; not in the model: ', found.unexpected),
        )
    )
