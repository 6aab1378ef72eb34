"""Each config builds its model and its hooks."""

from pathlib import Path

import pytest
from mmdet.engine.hooks import PipelineSwitchHook, SyncNormHook, YOLOXModeSwitchHook
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS, MODELS, DefaultScope
from mmengine.runner import get_priority
from mmengine.utils import get_installed_path

from mmyolo_ema import EMAHook, ExpMomentumEMA
from mmyolo_ema.run_plan import plan_run
from mmyolo_ema.schedules import figures

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
NAMES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.glob('[!_]*/*.py'))


def load(name):
    return Config.fromfile(CONFIGS / name)


def build(cfg):
    """Returns the model of a config and its hooks, as the runner sorts them."""
    if 'backbone' in cfg.model:
        cfg.model.backbone.init_cfg = None  # the weights to start from are not here
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        model = MODELS.build(cfg.model)
        hooks = [(hook.pop('priority', None), HOOKS.build(hook)) for hook in cfg.custom_hooks]
    return model, hooks


@pytest.mark.parametrize('name', NAMES)
def test_model_and_average_are_built(name):
    cfg = load(name)
    model, hooks = build(cfg)
    priorities = [(priority, hook) for priority, hook in hooks if isinstance(hook, EMAHook)]
    assert len(priorities) == 1
    priority, hook = priorities[0]
    assert 48 < priority < get_priority(CheckpointHook.priority)  # after YOLOX's hooks, before the file is written
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        averaged = MODELS.build(hook.ema_cfg, default_args=dict(model=model))
    assert type(averaged) is ExpMomentumEMA
    assert averaged.update_buffers
    averaged.update_parameters(model)


@pytest.mark.parametrize('name', [name for name in NAMES if 'coco' in name])
def test_hooks_of_mmdetections_config_are_kept(name):
    folder, file = name.split('/')
    base = Config.fromfile(Path(get_installed_path('mmdet')) / '.mim/configs' / folder / file.replace('_ema', ''))
    theirs = [dict(hook) for hook in base.get('custom_hooks', []) if hook.type != 'EMAHook']
    ours = [
        {key: value for key, value in hook.items() if key != '_scope_'}
        for hook in load(name).custom_hooks
        if hook.type != 'mmyolo_ema.EMAHook'
    ]
    assert ours == theirs
    kinds = dict(rtmdet={PipelineSwitchHook}, yolox={YOLOXModeSwitchHook, SyncNormHook}, faster_rcnn=set())
    assert {type(hook) for _, hook in build(load(name))[1]} - {EMAHook} == kinds[folder]
    their_average = [hook.momentum for hook in base.get('custom_hooks', []) if hook.type == 'EMAHook']
    our_average = [hook.momentum for hook in load(name).custom_hooks if hook.type == 'mmyolo_ema.EMAHook']
    assert len(our_average) == 1
    assert their_average in ([], our_average)


def test_demo_averages_over_a_sensible_share_of_its_run():
    cfg = load('demo/rtmdet_nuclei.py')
    plan = plan_run(cfg)
    assert plan.updates == 480
    assert figures(plan.schedule, [480])[0].mean_age == pytest.approx(0.04 * 480, rel=0.01)
