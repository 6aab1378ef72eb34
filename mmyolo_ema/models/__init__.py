"""How weights are averaged."""

from mmyolo_ema.models.exp_momentum_ema import ExpMomentumEMA
from mmyolo_ema.models.schedule_of import schedule_of

__all__ = ['ExpMomentumEMA', 'schedule_of']
