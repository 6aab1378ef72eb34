"""What an EMA checkpoint holds: reading it, inspecting and comparing its weights, handing them on."""

from mmyolo_ema.checkpoint.misfits import Misfits, check_fits, listed, misfits
from mmyolo_ema.checkpoint.reading import latest_whole, read, use_safe_loader
from mmyolo_ema.checkpoint.weights import PREFIX, averaged_weights, has_ema, raw_weights, updates_in

__all__ = [
    'PREFIX', 'Misfits', 'averaged_weights', 'check_fits', 'has_ema', 'latest_whole', 'listed', 'misfits',
    'raw_weights', 'read', 'updates_in', 'use_safe_loader'
]
