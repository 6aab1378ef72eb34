"""The average of another horizon, made of a run's checkpoints after the training.

:func:`read_run` is where to begin. What validates averages is in :mod:`mmyolo_ema.posthoc.evaluation` and
:mod:`mmyolo_ema.posthoc.sweep`, which import MMDetection's evaluators.
"""

from mmyolo_ema.posthoc.fit import Fit, fit
from mmyolo_ema.posthoc.gram import Gram, Snapshot, gram
from mmyolo_ema.posthoc.reconstruction import Reconstruction, write
from mmyolo_ema.posthoc.run import StoredRun
from mmyolo_ema.posthoc.snapshots import read_run
from mmyolo_ema.posthoc.targets import Target

__all__ = ['Fit', 'Gram', 'Reconstruction', 'Snapshot', 'StoredRun', 'Target', 'fit', 'gram', 'read_run', 'write']
