_base_ = ['mmdet::rtmdet/rtmdet_tiny_8xb32-300e_coco.py', '../_base_/ema.py']

# RTMDet's switch of the pipeline for the last epochs, and our average in the place of MMDetection's.
custom_hooks = [_base_.ema_hook] + [hook for hook in _base_.custom_hooks if hook.type != 'EMAHook']

# 8 GPUs x 32 images, which the learning rate is meant for; the base inherits 16 from another schedule.
auto_scale_lr = dict(base_batch_size=256)
