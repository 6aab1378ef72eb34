"""Averaged weights for detectors that train with MMEngine and MMDetection."""
from mmyolo_ema.models import ExpMomentumEMA
