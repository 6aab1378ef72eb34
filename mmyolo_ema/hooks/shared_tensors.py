"""Whether an average moves a tensor once for each of the names that the model has for it."""

from collections import defaultdict

from mmdet.models.layers import ExpMomentumEMA as MMDetExpMomentumEMA
from mmengine.model import BaseAveragedModel
from torch import nn

from mmyolo_ema.models.tensor_references import tensor_references

_MOST_NAMES = 3


def averages_by_name(ema_model: BaseAveragedModel) -> bool:
    """Whether an average comes to a shared tensor once for each of its names."""
    goes_by_name = type(ema_model).update_parameters is BaseAveragedModel.update_parameters
    return bool(goes_by_name and ema_model.update_buffers)


def advice_on_shared_tensors(ema_model: BaseAveragedModel, model: nn.Module) -> str:
    """Returns which shared tensors an average moves too often, and what to write instead, or nothing.

    MMEngine's loop over a state dictionary, which its classes and MMDetection's use with ``update_buffers``, comes to a
    shared tensor once for each name.

    Args:
        ema_model: The average, of any class.
        model: The bare model.
    """
    if not averages_by_name(ema_model):
        return ''
    names_of = defaultdict(list)
    for name, reference in tensor_references(model):
        if reference.is_persistent and reference.tensor.is_floating_point():
            names_of[id(reference.tensor)].append(name)
    shared = [names for names in names_of.values() if len(names) > 1]
    if not shared:
        return ''
    listed = ', '.join(f'{names[0]} ({len(names)} names)' for names in shared[:_MOST_NAMES])
    others = f' and {len(shared) - _MOST_NAMES} others' if len(shared) > _MOST_NAMES else ''
    instead = "ema_type='mmyolo_ema.ExpMomentumEMA', which averages each once"
    if not isinstance(ema_model, MMDetExpMomentumEMA):
        instead += ' and whose momentum ramps, or update_buffers=False'
    return (
        f'{type(ema_model).__module__.split(".")[0]}.{type(ema_model).__name__} averages shared tensors once for '
        f'each of their names, so several times in an update: {listed}{others}. Write {instead}.'
    )
