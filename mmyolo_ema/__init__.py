"""Averaged weights for detectors that train with MMEngine and MMDetection."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mmyolo_ema.environment import explained

if TYPE_CHECKING:
    from mmyolo_ema import checkpoint, posthoc, schedule, schedules
    from mmyolo_ema.hooks import EMAHook, RawWeightsHook, SnapshotHook, StoredWeightsHook
    from mmyolo_ema.models import ExpMomentumEMA

__all__ = [
    'EMAHook',
    'ExpMomentumEMA',
    'RawWeightsHook',
    'SnapshotHook',
    'StoredWeightsHook',
    '__version__',
    'checkpoint',
    'posthoc',
    'schedule',
    'schedules',
]

# The one place; pyproject.toml reads it.
__version__ = '0.2.0'

_ROOMS = dict(
    EMAHook='hooks', ExpMomentumEMA='models', RawWeightsHook='hooks', SnapshotHook='hooks', StoredWeightsHook='hooks'
)


def __getattr__(name: str) -> Any:
    """Imports a name when it is first used: MMDetection takes seconds, and a command's ``--help`` does not need it."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    with explained():
        module = import_module(f'mmyolo_ema.{_ROOMS.get(name, name)}')
    return getattr(module, name) if name in _ROOMS else module
