"""The detectors that averages are timed on, built from MMDetection's configs."""

from pathlib import Path

from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.model import BaseModule, revert_sync_batchnorm
from mmengine.registry import init_default_scope
from torch import nn

from mmyolo_ema.building import build_model, scope_of

#: The configs of MMDetection that have a short name here, small detectors first.
DETECTORS = {
    'rtmdet-tiny': 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'yolox-s': 'mmdet::yolox/yolox_s_8xb8-300e_coco.py',
    'faster-rcnn-r50': 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'rtmdet-l': 'mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py',
}


def build_detector(name: str) -> nn.Module:
    """Returns a detector with random weights, as MMEngine's runner makes it for a single process.

    Args:
        name: A key of ``DETECTORS``, or the path of a config.

    Raises:
        ValueError: If it is neither.
    """
    if name in DETECTORS:
        cfg = get_config(DETECTORS[name])
    elif Path(name).is_file():
        cfg = Config.fromfile(name)
    else:
        raise ValueError(f'{name} is no config, and none of {", ".join(DETECTORS)}')
    init_default_scope(scope_of(cfg))
    model = revert_sync_batchnorm(build_model(cfg))
    for module in model.modules():
        # A runner would download the weights of a backbone.
        if isinstance(module, BaseModule) and 'Pretrained' in str(module.init_cfg):
            module.init_cfg = None
    return model
