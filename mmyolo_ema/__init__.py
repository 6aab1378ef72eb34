"""Averaged weights for detectors that train with MMEngine and MMDetection."""

from mmyolo_ema.environment import check_torch, remedy

try:
    check_torch()
    from mmyolo_ema.hooks import EMAHook
    from mmyolo_ema.models import ExpMomentumEMA
except ImportError as error:
    raise ImportError(f'mmyolo_ema cannot work here: {remedy(error)}', name=error.name) from error

__all__ = ['EMAHook', 'ExpMomentumEMA']
