"""Checkpoints of which each process saves a file with its own part, as FSDP1 does with ``state_dict_cfg='local'``."""

from copy import deepcopy
from typing import Any

import torch
from mmengine.model import BaseAveragedModel
from torch import Tensor, nn

from mmyolo_ema.checkpoint import PREFIX, Mismatches, averaged_weights
from mmyolo_ema.checkpoint.weights import FURTHER, further_averages, unprefixed
from mmyolo_ema.hooks.sharing import shards_of
from mmyolo_ema.hooks.stored_average import unfit
from mmyolo_ema.hooks.weight_swap import WeightSwap
from mmyolo_ema.models import ExpMomentumEMA
from mmyolo_ema.models.fully_sharded import is_cut, local
from mmyolo_ema.models.tensor_references import tensor_references


def store_local(
    checkpoint: dict[str, Any], averages: dict[str, BaseAveragedModel], model: nn.Module, has_begun: bool
) -> None:
    """Puts this process's part of averages into its file, where a file with the whole has them.

    All processes must call this.

    Args:
        checkpoint: What is about to be saved; changed in place.
        averages: The averages by name; the main one, 'ema', first.
        model: The model that they follow, with its own weights.
        has_begun: Whether they have been updated. Otherwise the raw weights stand for the main one.
    """
    raw = deepcopy(model.state_dict())
    states = {name: _averaged_state(average, model) for name, average in averages.items()} if has_begun else {}
    ema_model, *_ = averages.values()
    checkpoint['state_dict'] = states.pop('ema', raw)
    checkpoint['ema_state_dict'] = _stored(ema_model, raw)
    if states:
        checkpoint[FURTHER] = {name: _stored(averages[name], state) for name, state in states.items()}


def load_local(
    averages: dict[str, BaseAveragedModel], model: nn.Module, checkpoint: dict[str, Any], goes_on: bool, updates: int
) -> list[Mismatches]:
    """Loads this process's part of averages from its file; as :func:`load` does, but the file must fit.

    The model has weights of an average afterwards; it has yet to load its own.

    Raises:
        ValueError: If the file lacks tensors of the model, or has others.
    """
    content = checkpoint if 'state_dict' in checkpoint else dict(state_dict=checkpoint)
    stored = further_averages(content) if goes_on else {}
    main = dict(content['ema_state_dict'] if goes_on else {}, steps=torch.tensor(updates))
    for name, average in averages.items():
        state = unprefixed(stored[name], prefixed_only=True) if name in stored else averaged_weights(content)
        keys = model.load_state_dict(state, strict=False)
        # With use_orig_params the parts of the parameters are loaded, and the flat ones are not asked for.
        unexpected = [name for name in keys.unexpected_keys if not name.endswith('_flat_param')]
        if mismatches := unfit(Mismatches(keys.missing_keys, {}, unexpected, [])):
            raise ValueError(f'the checkpoint does not fit the model{mismatches}')
        _follow(average, model)
        for key, value in _own_state(average).items():
            value.copy_(stored.get(name, main).get(key, value))
    return [Mismatches([], {}, [], [])]


def _averaged_state(average: BaseAveragedModel, model: nn.Module) -> dict[str, Any]:
    swap = WeightSwap(average.module, model, shards_of(average))
    try:
        swap.swap_in()
        return deepcopy(model.state_dict())
    finally:
        swap.swap_out()


def _stored(average: BaseAveragedModel, state: dict[str, Any]) -> dict[str, Any]:
    return {**deepcopy(_own_state(average)), **{PREFIX + name: value for name, value in state.items()}}


def _own_state(average: BaseAveragedModel) -> dict[str, Tensor]:
    """Returns what an average holds besides weights, its count of updates, in the same memory."""
    state: dict[str, Tensor] = {}
    nn.Module._save_to_state_dict(average, state, '', keep_vars=False)  # its own refuses while it is in parts
    return state


@torch.no_grad()
def _follow(average: BaseAveragedModel, model: nn.Module) -> None:
    """Copies this process's part of a model into an average."""
    assert isinstance(average, ExpMomentumEMA)  # others are refused
    average.share_out(model)
    own = dict(tensor_references(average.module))
    for name, reference in tensor_references(model):
        averaged, source = own[name].tensor, reference.tensor
        part = average.shards.own_part(averaged, source)[0] if average.shards and is_cut(source) else averaged
        part.copy_(local(source))
