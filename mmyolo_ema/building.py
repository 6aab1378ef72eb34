"""Building parts of a config as MMEngine's runner does, where there is no runner."""

from copy import deepcopy

from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

__all__ = ['build_model', 'scope_of']


def build_model(cfg: Config) -> nn.Module:
    """Returns the model of a config, with the ``data_preprocessor`` that may stand beside it. Leaves the config alone.

    Args:
        cfg: The config. Its scope must be the default one: see :func:`scope_of`.
    """
    model = deepcopy(cfg.model)
    if cfg.get('data_preprocessor') is not None:
        model.setdefault('data_preprocessor', deepcopy(cfg.data_preprocessor))
    return MODELS.build(model)


def scope_of(cfg: Config) -> str:
    """Returns the registry in which the names of a config are looked up first."""
    return cfg.get('default_scope') or 'mmengine'
