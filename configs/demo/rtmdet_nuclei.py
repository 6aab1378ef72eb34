# A small RTMDet on the nuclei of demo/nuclei, for two CPU cores: one to three minutes.
_base_ = 'mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py'

max_epochs = 24
norm_cfg = dict(type='BN')

model = dict(
    use_syncbn=False,  # in several processes it would need GPUs
    backbone=dict(widen_factor=0.25, norm_cfg=norm_cfg, init_cfg=None),
    neck=dict(in_channels=[64, 128, 256], out_channels=64, norm_cfg=norm_cfg),
    bbox_head=dict(num_classes=1, in_channels=64, feat_channels=64, norm_cfg=norm_cfg),
    test_cfg=dict(nms_pre=1000, max_per_img=100))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs')
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),  # the crops' own size
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))
]
# For tools/test.py --tta: each crop as it is, and flipped.
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='TestTimeAug',
        transforms=[[dict(type='Resize', scale=(128, 128), keep_ratio=True)],
                    [dict(type='RandomFlip', prob=1.0),
                     dict(type='RandomFlip', prob=0.0)],
                    [
                        dict(
                            type='PackDetInputs',
                            meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip',
                                       'flip_direction'))
                    ]])
]

data_root = '{{ fileDirname }}/../../demo/nuclei/'
metainfo = dict(classes=('nucleus', ), palette=[(220, 20, 60)])
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='train.json',
        data_prefix=dict(img='train/'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='val.json',
        data_prefix=dict(img='val/'),
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'val.json')
test_evaluator = val_evaluator

train_cfg = dict(max_epochs=max_epochs, val_interval=6, dynamic_intervals=None)
optim_wrapper = dict(optimizer=dict(lr=0.002))
auto_scale_lr = dict(base_batch_size=8)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=40),
    dict(
        type='CosineAnnealingLR',
        eta_min=0.0001,
        begin=max_epochs // 2,
        end=max_epochs,
        T_max=max_epochs // 2,
        by_epoch=True,
        convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=6, max_keep_ckpts=2))

# The averaged weights are 4 % of the run old at its end, as in the long COCO recipes.
# Both kinds of weights are validated: the raw ones' metrics have names that end in _origin.
custom_hooks = [
    dict(type='mmyolo_ema.EMAHook', mean_age='4%', update_buffers=True, evaluate_on_origin=True, priority=49)
]
randomness = dict(seed=0)
