"""Averaged weights for detectors that train with MMEngine and MMDetection."""

from mmyolo_ema.environment import check_torch, remedy

try:
    check_torch()
    from mmyolo_ema import checkpoint, posthoc, schedule, schedules
    from mmyolo_ema.hooks import EMAHook, RawWeightsHook, SnapshotHook, StoredWeightsHook
    from mmyolo_ema.models import ExpMomentumEMA
except ImportError as error:
    # MMEngine's registry passes over an ImportError, and would only say that the hook is not registered.
    raise RuntimeError(f'mmyolo_ema cannot work here: {remedy(error)}') from error

__all__ = [
    'EMAHook', 'ExpMomentumEMA', 'RawWeightsHook', 'SnapshotHook', 'StoredWeightsHook', '__version__', 'checkpoint',
    'posthoc', 'schedule', 'schedules'
]

# The one place; pyproject.toml reads it.
__version__ = '0.1.0'
