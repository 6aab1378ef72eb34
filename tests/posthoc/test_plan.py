import pytest
from mmengine.config import Config

from mmyolo_ema.posthoc import Snapshot
from mmyolo_ema.posthoc.plan import advice, as_configured, with_snapshots
from mmyolo_ema.posthoc.run import RAW_SCHEDULE as RAW
from mmyolo_ema.posthoc.targets import target
from mmyolo_ema.run_plan import plan_run
from mmyolo_ema.schedules import Ramp, ramp_of_age

SIZE, AVERAGE = 1000, Ramp(0.05, 10)


@pytest.fixture
def planned():
    """Returns a function that makes a config of 10 epochs with 20 updates, and its plan."""

    def make(checkpoint=None, snapshots=None, **options):
        hooks = [dict(type='mmyolo_ema.EMAHook', ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.05, gamma=10)]
        if snapshots is not None:
            hooks.append(dict(type='mmyolo_ema.SnapshotHook', **snapshots))
        cfg = Config(
            dict(
                train_cfg=dict(by_epoch=True, max_epochs=10),
                train_dataloader=dict(batch_size=8),
                optim_wrapper=dict(type='OptimWrapper', optimizer=dict(type='SGD')),
                custom_hooks=hooks,
                default_hooks=dict(checkpoint=dict(type='CheckpointHook', **(checkpoint or {}))),
            )
        )
        cfg.merge_from_dict(options)
        return cfg, plan_run(cfg, dataset_size=160)

    return make


@pytest.mark.parametrize(
    ('checkpoint', 'updates'),
    [
        (dict(interval=4), [80, 160, 200]),
        (dict(interval=4, save_last=False), [80, 160]),
        (dict(interval=1, max_keep_ckpts=2), [180, 200]),
        (dict(), [200]),
        (dict(interval=90, by_epoch=False), [90, 180, 200]),
    ],
)
def test_checkpoints_are_those_that_stay(planned, checkpoint, updates):
    kept = as_configured(*planned(checkpoint), SIZE)
    assert kept.snapshots == [Snapshot(schedule, count) for schedule in (AVERAGE, RAW) for count in updates]
    assert (kept.files, kept.bytes) == (len(updates), len(updates) * 3 * SIZE)


def test_checkpoints_before_the_average_begins_are_none_of_it(planned):
    kept = as_configured(*planned(dict(interval=2), **{'custom_hooks.0.begin_epoch': 5}), SIZE)
    assert [snapshot.updates for snapshot in kept.snapshots if snapshot.schedule == AVERAGE] == [40, 80, 120]


def test_snapshots_of_the_config_are_added(planned):
    kept = as_configured(*planned(dict(interval=5), dict(interval=100, second_horizon=5)), SIZE)
    second = Ramp(0.2, 10)
    assert kept.snapshots == [Snapshot(schedule, count) for schedule in (AVERAGE, RAW, second) for count in (100, 200)]
    assert (kept.files, kept.bytes) == (4, 2 * 4 * SIZE + 2 * 2 * SIZE)


def test_advice_is_good_enough_and_no_narrower(planned):
    _, plan = planned()
    settings = advice(plan, SIZE, 0.17)
    shortened = settings[0]
    wanted = [target(text, plan.schedule, plan.updates) for text in ('10', '40')]
    assert all(kept.reconstruction_error(average, plan.updates) <= 0.17 for average in wanted for kept in settings)
    assert shortened.name == 'SnapshotHook interval=12'
    wider = with_snapshots(plan, SIZE, '25')
    assert any(wider.reconstruction_error(average, plan.updates) > 0.17 for average in wanted)
    assert [kept.bytes for kept in settings] == sorted({kept.bytes for kept in settings}, reverse=True)
    assert len(settings) == 3


def test_what_the_hooks_would_refuse_is_refused(planned):
    with pytest.raises(ValueError, match=r"default_hooks\.checkpoint\.interval must be an integer, but got 'often'"):
        as_configured(*planned(dict(interval='often')), SIZE)
    with pytest.raises(ValueError, match="but got 'often'"):
        as_configured(*planned(snapshots=dict(interval='often')), SIZE)


def test_averages_of_the_config_are_in_its_files(planned):
    further = dict(short=dict(momentum=0.2), long=dict(mean_age='10%'))
    cfg, plan = planned(dict(interval=5), dict(interval=50), **{'custom_hooks.0.averages': further})
    assert plan.further == dict(short=Ramp(0.2), long=ramp_of_age('10%', 200, 20))
    kept = as_configured(cfg, plan, SIZE)
    assert kept.snapshots[:8] == [
        Snapshot(schedule, count) for schedule in (AVERAGE, RAW, *plan.further.values()) for count in (100, 200)
    ]
    assert (len(kept.snapshots), kept.bytes) == (8 + 3 * 2, 2 * 5 * SIZE + 4 * 3 * SIZE)
    assert [setting.advice for setting in advice(plan, SIZE, 0.17)] == [
        "dict(type='mmyolo_ema.SnapshotHook', interval=100)"
    ]


def test_averages_that_leave_out_other_tensors_take_space_and_are_not_used(planned):
    settings = []
    for options in ({}, dict(exclude=['^head'])):
        averages = dict(short=dict(momentum=0.2), other=dict(momentum=0.3, **options))
        settings.append(as_configured(*planned(snapshots={}, **{'custom_hooks.0.averages': averages}), SIZE))
    assert settings[0].bytes == settings[1].bytes
    assert {snapshot.schedule for snapshot in settings[1].snapshots} == {AVERAGE, RAW, Ramp(0.2)}


def test_advice_names_averages_that_the_hook_takes(planned):
    cfg, plan = planned()
    *_, with_three = advice(plan, SIZE, 0.1)
    snapshots, averages = with_three.advice.removesuffix(' for the EMAHook').split(', and averages=')
    cfg.custom_hooks = [dict(cfg.custom_hooks[0], averages=eval(averages)), eval(snapshots)]
    configured = as_configured(cfg, plan_run(cfg, dataset_size=160), SIZE)
    assert set(with_three.snapshots) <= set(configured.snapshots)


def test_advice_for_the_hook_of_mmengine_names_no_further_average(planned):
    _, plan = planned(**{'custom_hooks.0.type': 'EMAHook'})
    assert [kept.name for kept in advice(plan, SIZE, 0.17)] == ['SnapshotHook interval=12']
