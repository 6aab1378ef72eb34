"""The average of another horizon, made of a run's checkpoints after the training."""

from mmyolo_ema.posthoc.fit import Fit, fit
from mmyolo_ema.posthoc.gram import Gram, Snapshot, gram

__all__ = ['Fit', 'Gram', 'Snapshot', 'fit', 'gram']
