"""Who is timed: the classes that average weights, and the least that any of them has to do."""

from collections.abc import Callable
from functools import cache
from importlib.metadata import distribution
from importlib.util import find_spec
from runpy import run_path
from typing import Any, NamedTuple

import torch
from mmdet.models.layers import ExpMomentumEMA as MMDetExpMomentumEMA
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mmyolo_ema.models import ExpMomentumEMA

OURS = 'mmyolo_ema'
#: A ramp that is over before the first update: the other classes have none.
NO_RAMP = 1e-3


class Contender(NamedTuple):
    """An average of a model, whichever class keeps it."""

    #: What the class is: its state is what a checkpoint stores.
    average: nn.Module
    #: The averaged model inside.
    module: nn.Module
    #: Makes one update.
    update: Callable[[], object]


#: Makes the average of a model with a constant momentum; its third argument is ``update_buffers``.
Maker = Callable[[nn.Module, float, bool], Contender]


def makers(update_buffers: bool) -> dict[str, Maker]:
    """Returns how each class is made that is installed and can average, or leave out, the buffers.

    Each gets the settings that make it fastest: the fused calls of torch, where it has them.

    Args:
        update_buffers: Whether the statistics of BatchNorm are averaged as the parameters are.

    Returns:
        The makers by name, ours first.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(1, 1)
        >>> contender = makers(update_buffers=True)['mmengine'](model, 0.1, True)
        >>> contender.update()
        >>> bool(contender.module.weight == model.weight)
        True
    """
    result: dict[str, Maker] = {OURS: _ours, 'mmdet': _mmdet, 'mmengine': _mmengine, 'torch': _torch}
    if find_spec('timm') is not None:
        result['timm'] = _timm
    # It averages all floating buffers, always.
    if find_spec('ema_pytorch') is not None and update_buffers:
        result['ema-pytorch'] = _ema_pytorch
    return result


def _ours(model: nn.Module, momentum: float, update_buffers: bool) -> Contender:
    average = ExpMomentumEMA(model, momentum, NO_RAMP, update_buffers=update_buffers)
    return _updated_with_model(average, model)


def _mmdet(model: nn.Module, momentum: float, update_buffers: bool) -> Contender:
    average = MMDetExpMomentumEMA(model, momentum, NO_RAMP, update_buffers=update_buffers)
    return _updated_with_model(average, model)


def _mmengine(model: nn.Module, momentum: float, update_buffers: bool) -> Contender:
    average = ExponentialMovingAverage(model, momentum, update_buffers=update_buffers)
    return _updated_with_model(average, model)


def _torch(model: nn.Module, momentum: float, update_buffers: bool) -> Contender:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(1 - momentum), use_buffers=update_buffers)
    return _updated_with_model(average, model)


def _updated_with_model(average: Any, model: nn.Module) -> Contender:
    return Contender(average, average.module, lambda: average.update_parameters(model))


def _timm(model: nn.Module, momentum: float, update_buffers: bool) -> Contender:
    average = _timm_class()(model, decay=1 - momentum, exclude_buffers=not update_buffers)
    return Contender(average, average.module, lambda: average.update(model))


@cache
def _timm_class() -> Any:
    """Returns timm's class from its file alone: the package needs torchvision, this file does not."""
    return run_path(str(distribution('timm').locate_file('timm/utils/model_ema.py')))['ModelEmaV3']


def _ema_pytorch(model: nn.Module, momentum: float, update_buffers: bool) -> Contender:
    from ema_pytorch import EMA

    # Settled from the start: no copies, no ramp. A minimum equal to the maximum is a constant.
    average = EMA(
        model,
        beta=1 - momentum,
        min_value=1 - momentum,
        update_after_step=-2,
        update_every=1,
        include_online_model=False,
        use_foreach=True,
    )
    return Contender(average, average.ema_model, average.update)


def averaged_pairs(average: nn.Module, model: nn.Module, update_buffers: bool) -> list[tuple[Tensor, Tensor]]:
    """Returns the averaged tensors with their sources, each distinct one once, in the order of the modules."""
    pairs = zip(_averaged_tensors(average, update_buffers), _averaged_tensors(model, update_buffers))
    return [(averaged.detach(), source.detach()) for averaged, source in pairs]


def _averaged_tensors(model: nn.Module, update_buffers: bool) -> list[Tensor]:
    stored = model.state_dict()
    buffers = [buffer for name, buffer in model.named_buffers() if name in stored] if update_buffers else []
    return [tensor for tensor in (*model.parameters(), *buffers) if tensor.is_floating_point()]


def bare_update(pairs: list[tuple[Tensor, Tensor]], momentum: float) -> Callable[[], object]:
    """Returns one ``torch._foreach_lerp_`` over lists that are prepared beforehand."""
    averaged, source = map(list, zip(*pairs))
    return lambda: torch._foreach_lerp_(averaged, source, momentum)


def limit_update(pairs: list[tuple[Tensor, Tensor]], momentum: float) -> tuple[Callable[[], object], Tensor]:
    """Returns one ``lerp_`` over a single tensor of the same size, and that tensor's source.

    It reads two numbers and writes one for each weight, 12 bytes in float32: the time that the memory takes.
    """
    averaged, source = (torch.cat([tensor.flatten() for tensor in tensors]) for tensors in zip(*pairs))
    return lambda: averaged.lerp_(source, momentum), source
