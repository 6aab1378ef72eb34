"""Building the model of a config: the one door, so that what it loads meanwhile is read safely."""

from copy import deepcopy
from typing import Any

from mmengine.config import Config
from mmengine.model import BaseAveragedModel
from mmengine.registry import MODELS
from torch import nn

from mmyolo_ema.checkpoint import use_safe_loader
from mmyolo_ema.models import ExpMomentumEMA
from mmyolo_ema.models.selection import Selection


def build_model(cfg: Config) -> nn.Module:
    """Returns the model of a config, with the ``data_preprocessor`` that may stand beside it. Leaves the config alone.

    From then on, MMEngine reads checkpoints safely in this process: a model may load a teacher when it is built, and a
    backbone when it is initialised. The scope must be the default one: see :func:`scope_of`.
    """
    use_safe_loader()
    model = deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', deepcopy(cfg.data_preprocessor))
    return MODELS.build(model)


def build_average(options: dict[str, Any]) -> BaseAveragedModel:
    """Returns an average of nothing, to be asked for its schedule; raises what its class raises for the options."""
    use_safe_loader()
    # Which tensors it has is no matter, and an expression that finds none is an error.
    filters = {name: options[name] for name in ('include', 'exclude') if name in options}
    others = {name: value for name, value in options.items() if name not in filters}
    average = MODELS.build(others, default_args=dict(model=nn.Module()))
    if isinstance(average, ExpMomentumEMA):
        Selection(**filters)
    return average


def scope_of(cfg: Config) -> str:
    """Returns the registry in which the names of a config are looked up first."""
    return cfg.get('default_scope') or 'mmengine'
