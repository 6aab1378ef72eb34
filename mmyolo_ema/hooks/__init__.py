"""When weights are averaged, evaluated, saved and loaded."""

from mmyolo_ema.hooks.ema_hook import EMAHook
from mmyolo_ema.hooks.snapshot_hook import SnapshotHook
from mmyolo_ema.hooks.stored_weights_hook import RawWeightsHook, StoredWeightsHook

__all__ = ['EMAHook', 'RawWeightsHook', 'SnapshotHook', 'StoredWeightsHook']
