# The demo's run with what tools/posthoc_ema.py needs to make averages of other horizons: see docs/posthoc.md.
_base_ = 'rtmdet_nuclei.py'

# 60 snapshots of 17.5 MB. The horizon of the average is 20 updates; the second one is a quarter of it.
custom_hooks = [*_base_.custom_hooks, dict(type='mmyolo_ema.SnapshotHook', interval=8, second_horizon=5)]
