# The average, for a config to put into its custom_hooks. Lists are replaced, not merged, so a config whose
# base has hooks of its own lists those again: see configs/rtmdet/ and configs/yolox/.
ema_hook = dict(
    type='mmyolo_ema.EMAHook',
    ema_type='mmyolo_ema.ExpMomentumEMA',
    # Weight of the newest step once the ramp is over: a horizon of 1 / 0.0002 = 5,000 updates.
    momentum=0.0002,
    # Length scale of the ramp, in updates. A run of a few thousand updates needs less.
    gamma=2000,
    # Average the statistics of BatchNorm too, as RTMDet and YOLOX do.
    update_buffers=True,
    # Before CheckpointHook and after YOLOX's hooks, which have 48.
    priority=49)
