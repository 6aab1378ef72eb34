"""What an EMA checkpoint holds: reading it, inspecting and comparing its weights, exporting them."""

from mmyolo_ema.checkpoint.archive import verify
from mmyolo_ema.checkpoint.comparison import Comparison, compare
from mmyolo_ema.checkpoint.embedded_program import check_no_program
from mmyolo_ema.checkpoint.inspection import Inspection, inspect
from mmyolo_ema.checkpoint.mismatches import Misfits, Mismatches, listed, load_all, load_fitting
from mmyolo_ema.checkpoint.publication import Published, extract, publish
from mmyolo_ema.checkpoint.reading import ForeignFile, latest_complete, latest_whole, read, use_safe_loader
from mmyolo_ema.checkpoint.weights import (
    PREFIX,
    averaged_weights,
    has_ema,
    raw_weights,
    state_dict_kind,
    updates_in,
    weights_in,
    weights_of,
)

__all__ = [
    'PREFIX',
    'Comparison',
    'ForeignFile',
    'Inspection',
    'Misfits',
    'Mismatches',
    'Published',
    'averaged_weights',
    'check_no_program',
    'compare',
    'extract',
    'has_ema',
    'inspect',
    'latest_complete',
    'latest_whole',
    'listed',
    'load_all',
    'load_fitting',
    'publish',
    'raw_weights',
    'read',
    'state_dict_kind',
    'updates_in',
    'use_safe_loader',
    'verify',
    'weights_in',
    'weights_of',
]
