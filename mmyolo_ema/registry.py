"""Registries of this package, children of MMEngine's.

A config reaches what is registered here by the prefix ``mmyolo_ema.`` from any
scope, without ``custom_imports``: MMEngine imports this module when it meets
the prefix, and the locations when it looks a name up.
"""

from mmyolo_ema.environment import check_torch, explained

with explained():
    check_torch()
    import mmdet.models.layers  # noqa: F401  what the locations import
    from mmengine.registry import HOOKS as MMENGINE_HOOKS
    from mmengine.registry import MODELS as MMENGINE_MODELS
    from mmengine.registry import Registry

# Averaged models: how weights are averaged.
MODELS = Registry('model', parent=MMENGINE_MODELS, scope='mmyolo_ema', locations=['mmyolo_ema.models'])
# Hooks: when they are averaged, evaluated, saved and loaded.
HOOKS = Registry('hook', parent=MMENGINE_HOOKS, scope='mmyolo_ema', locations=['mmyolo_ema.hooks'])
