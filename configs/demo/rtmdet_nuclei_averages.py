# The demo's run with averages of three lengths, all validated beside the raw weights: see docs/hook.md.
_base_ = 'rtmdet_nuclei.py'

custom_hooks = [
    dict(
        type='mmyolo_ema.EMAHook',
        mean_age='4%',
        averages=dict(short=dict(mean_age='1%'), long=dict(mean_age='10%')),
        evaluate=['ema', 'raw', 'short', 'long'],
        update_buffers=True,
        priority=49)
]
train_cfg = dict(val_interval=3)
