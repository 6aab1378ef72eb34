"""When weights are averaged, evaluated, saved and loaded."""

from mmyolo_ema.hooks.ema_hook import EMAHook
from mmyolo_ema.hooks.raw_weights_hook import RawWeightsHook
from mmyolo_ema.hooks.snapshot_hook import SnapshotHook

__all__ = ['EMAHook', 'RawWeightsHook', 'SnapshotHook']
