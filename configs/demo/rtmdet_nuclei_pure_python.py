# The run of rtmdet_nuclei.py in MMEngine's pure-Python style: classes instead of names, nothing inherited.
# To be started from the root of the repository, because the path to the data is relative.
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, RandomFlip, Resize
from mmdet.evaluation import CocoMetric
from mmdet.models import CSPNeXt, CSPNeXtPAFPN, DetDataPreprocessor, RTMDet, RTMDetSepBNHead
from mmdet.models.losses import GIoULoss, QualityFocalLoss
from mmdet.models.task_modules import DistancePointBBoxCoder, DynamicSoftLabelAssigner, MlvlPointGenerator
from mmdet.visualization import DetLocalVisualizer
from mmengine.dataset import DefaultSampler, pseudo_collate
from mmengine.hooks import CheckpointHook, LoggerHook
from mmengine.optim import CosineAnnealingLR, LinearLR, OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, TestLoop, ValLoop
from mmengine.visualization import LocalVisBackend
from torch.nn import BatchNorm2d, SiLU
from torch.optim import AdamW

from mmyolo_ema import EMAHook, ExpMomentumEMA

max_epochs = 24
norm_cfg = dict(type=BatchNorm2d)
act_cfg = dict(type=SiLU, inplace=True)

model = dict(
    type=RTMDet,
    use_syncbn=False,  # in several processes it would need GPUs
    data_preprocessor=dict(
        type=DetDataPreprocessor, mean=[103.53, 116.28, 123.675], std=[57.375, 57.12, 58.395], bgr_to_rgb=False),
    backbone=dict(
        type=CSPNeXt,
        deepen_factor=0.167,
        widen_factor=0.25,
        expand_ratio=0.5,
        channel_attention=True,
        norm_cfg=norm_cfg,
        act_cfg=act_cfg),
    neck=dict(
        type=CSPNeXtPAFPN,
        in_channels=[64, 128, 256],
        out_channels=64,
        num_csp_blocks=1,
        expand_ratio=0.5,
        norm_cfg=norm_cfg,
        act_cfg=act_cfg),
    bbox_head=dict(
        type=RTMDetSepBNHead,
        num_classes=1,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        anchor_generator=dict(type=MlvlPointGenerator, offset=0, strides=[8, 16, 32]),
        bbox_coder=dict(type=DistancePointBBoxCoder),
        loss_cls=dict(type=QualityFocalLoss, use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_bbox=dict(type=GIoULoss, loss_weight=2.0),
        with_objectness=False,
        exp_on_reg=False,
        share_conv=True,
        pred_kernel_size=1,
        norm_cfg=norm_cfg,
        act_cfg=act_cfg),
    train_cfg=dict(
        assigner=dict(type=DynamicSoftLabelAssigner, topk=13), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.001, nms=dict(type='nms', iou_threshold=0.65), max_per_img=100))

train_pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=LoadAnnotations, with_bbox=True),
    dict(type=RandomFlip, prob=0.5, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type=PackDetInputs)
]
test_pipeline = [
    dict(type=LoadImageFromFile),
    dict(type=Resize, scale=(128, 128), keep_ratio=True),
    dict(type=LoadAnnotations, with_bbox=True),
    dict(type=PackDetInputs, meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]

data_root = 'demo/nuclei/'
metainfo = dict(classes=('nucleus', ), palette=[(220, 20, 60)])
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=True),
    collate_fn=dict(type=pseudo_collate),
    dataset=dict(
        type=CocoDataset,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type=DefaultSampler, shuffle=False),
    collate_fn=dict(type=pseudo_collate),
    dataset=dict(
        type=CocoDataset,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='val.json',
        data_prefix=dict(img='val/'),
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type=CocoMetric, ann_file=data_root + 'val.json', metric='bbox', proposal_nums=(100, 1, 10))
test_evaluator = val_evaluator

train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=max_epochs, val_interval=6)
val_cfg = dict(type=ValLoop)
test_cfg = dict(type=TestLoop)
optim_wrapper = dict(
    type=OptimWrapper,
    optimizer=dict(type=AdamW, lr=0.002, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0, bias_decay_mult=0, bypass_duplicate=True))
param_scheduler = [
    dict(type=LinearLR, start_factor=0.01, by_epoch=False, begin=0, end=40),
    dict(
        type=CosineAnnealingLR,
        eta_min=0.0001,
        begin=max_epochs // 2,
        end=max_epochs,
        T_max=max_epochs // 2,
        by_epoch=True,
        convert_to_iter_based=True),
]

default_hooks = dict(
    logger=dict(type=LoggerHook, interval=10), checkpoint=dict(type=CheckpointHook, interval=6, max_keep_ckpts=2))
custom_hooks = [
    dict(
        type=EMAHook,
        ema_type=ExpMomentumEMA,
        momentum=0.05,
        gamma=40,
        update_buffers=True,
        evaluate_on_origin=True,
        priority=49)
]
visualizer = dict(type=DetLocalVisualizer, vis_backends=[dict(type=LocalVisBackend)], name='visualizer')
default_scope = None
randomness = dict(seed=0)
