"""How weights are averaged."""

from mmyolo_ema.models.exp_momentum_ema import ExpMomentumEMA

__all__ = ['ExpMomentumEMA']
