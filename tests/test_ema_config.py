import pytest

from mmyolo_ema import ExpMomentumEMA
from mmyolo_ema.ema_config import averages_by_name, ema_hook_in, hooks_in_text, schedule_of
from mmyolo_ema.schedules import Annealing, Constant, Ramp, Uniform


def test_stored_config_gives_the_hooks_of_the_config(demo_config):
    cfg = demo_config()
    assert hooks_in_text(cfg.pretty_text) == [dict(hook) for hook in cfg.custom_hooks]


def test_text_of_a_config_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "import os\nos.mkdir('harm')\ncustom_hooks = [dict(type='EMAHook', momentum=os.mkdir('harm')), *[1]]"
    assert hooks_in_text(text)[0] == dict(type='EMAHook', momentum="os.mkdir('harm')")
    assert not (tmp_path / 'harm').exists()


@pytest.mark.parametrize(
    'text', ['', 'custom_hooks = [', 'custom_hooks = 1', 'a = 1', '\0', '(' * 1000, 'a.custom_hooks = [1]']
)
def test_text_without_hooks_gives_none(text):
    assert hooks_in_text(text) == []


@pytest.mark.parametrize(
    ('options', 'schedule'),
    [
        ({}, Constant()),
        (dict(ema_type='ExpMomentumEMA', momentum=0.1, interval=3, update_buffers=True), Ramp(0.1, 2000, 3)),
        (dict(ema_type='mmdet.ExpMomentumEMA', gamma=10), Ramp(gamma=10)),
        (dict(ema_type='MomentumAnnealingEMA'), Annealing(gamma=100)),
        (dict(ema_type='StochasticWeightAverage', interval=2), Uniform(2)),
    ],
)
def test_schedule_is_that_of_the_class(options, schedule):
    assert schedule_of(ema_hook_in([dict(type='Other'), dict(type='EMAHook', **options)])[1]) == schedule


@pytest.mark.parametrize('value', [0, -0.1, 1, '0.1', None, True, float('nan')])
def test_momentum_that_the_class_would_refuse_is_refused(value):
    with pytest.raises(ValueError, match='momentum must be a number above 0 and below 1, but got'):
        schedule_of(dict(type='EMAHook', momentum=value))


@pytest.mark.parametrize(
    ('ema_type', 'by_name'),
    [(ExpMomentumEMA, False), ('mmyolo_ema.ExpMomentumEMA', False), ('ExpMomentumEMA', True), (5, True)],
)
def test_class_of_this_package_averages_shared_tensors_once_however_it_is_named(ema_type, by_name):
    assert averages_by_name(dict(type='EMAHook', ema_type=ema_type, update_buffers=True)) is by_name
