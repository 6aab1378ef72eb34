_base_ = ['mmdet::yolox/yolox_l_8xb8-300e_coco.py', '../_base_/ema.py']

# YOLOX's mode switch and norm synchronisation, and our average, with YOLOX's momentum, in the place of MMDetection's.
custom_hooks = [hook for hook in _base_.custom_hooks if hook.type != 'EMAHook'] + [dict(_base_.ema_hook, momentum=0.0001)]
