import pytest
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmengine.runner import FlexibleRunner

from mmyolo_ema import ExpMomentumEMA, checkpoint
from mmyolo_ema.posthoc.snapshots import read_run
from mmyolo_ema.run_plan import plan_run
from mmyolo_ema.schedules import Ramp, mean_age, suggested
from tests.hooks.toy import average_of, scalars, toy_hook


def wish(age='4%', **options):
    return dict(type='mmyolo_ema.EMAHook', mean_age=age, update_buffers=True, **options)


def told(messages):
    return [message for message in map(str, messages) if message.startswith('EMA: ') and 'mean_age=' in message]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('options', 'age', 'updates', 'in_updates'),
    [
        (dict(), '25%', 12, 3),
        (dict(), '0.5epochs', 12, 3),
        (dict(), 3, 12, 3),
        (dict(), '3', 12, 3),
        (dict(optim_wrapper=dict(accumulative_counts=2)), '25%', 6, 1.5),
        (dict(optim_wrapper=dict(accumulative_counts=2)), '0.5epochs', 6, 1.5),
        (dict(by_epoch=False), '25%', 12, 3),
        (dict(hook=wish('25%', begin_epoch=2)), '25%', 6, 1.5),
        (dict(hook=wish('0.5epochs', begin_iter=5)), '0.5epochs', 8, 3),
        (dict(hook=wish('25%', interval=2)), '25%', 12, 3),
        (dict(kind=FlexibleRunner, strategy=dict(type='SingleDeviceStrategy')), '25%', 12, 3),
    ],
)
def test_average_is_as_old_at_the_end_as_was_wished_for(toy, messages, options, age, updates, in_updates):
    runner = toy(**{**dict(hook=wish(age)), **options})
    runner.train()
    average = average_of(runner).ema_model
    assert type(average) is ExpMomentumEMA
    assert average.steps == updates
    assert mean_age(updates, average.momentum, average.gamma, average.interval) == pytest.approx(in_updates, rel=0.01)
    assert told(messages) == [
        f'EMA: mean_age={age} of {updates} updates: momentum={average.momentum:.12g}, gamma={average.gamma:.12g}'
    ]
    last = [line for line in scalars(runner) if 'ema_mean_age' in line][-1]
    assert last['ema_mean_age'] == pytest.approx(in_updates, rel=0.01)


def test_checkpoint_says_what_was_chosen(toy, tmp_path):
    toy(hook=wish('25%')).train()
    found = checkpoint.inspect(tmp_path / 'run' / 'epoch_2.pth').average
    assert found.mean_age == pytest.approx(3, rel=0.01)
    assert found.horizon == 1 / numbers('25%')[0]
    assert read_run(tmp_path / 'run').schedule == Ramp(*numbers('25%'))


def numbers(age, updates=12):
    cfg = Config(dict(train_cfg=dict(max_iters=updates), train_dataloader=dict(batch_size=4), custom_hooks=[wish(age)]))
    plan = plan_run(cfg)
    return plan.schedule.momentum, plan.schedule.gamma


def test_config_is_read_as_the_hook_does():
    assert numbers('4%', 480) == suggested(480) == (0.0495, 39.9)


@pytest.mark.slow
@pytest.mark.parametrize('strategy', [{}, dict(kind=FlexibleRunner, strategy=dict(type='SingleDeviceStrategy'))])
def test_run_that_resumes_keeps_its_schedule(toy, messages, tmp_path, strategy):
    hooks = dict(custom_hooks=[wish('25%'), dict(type='mmyolo_ema.SnapshotHook', second_horizon=3)])
    toy(**hooks, **strategy).train()
    chosen = Ramp(*numbers('25%'))
    messages.clear()
    runner = toy(
        **hooks,
        **strategy,
        resume=True,
        load_from=str(tmp_path / 'run' / 'epoch_2.pth'),
        train_cfg=dict(by_epoch=True, max_epochs=4),
    )
    runner.train()
    assert average_of(runner).ema_model.schedule == chosen
    other = 'momentum={:.12g}, gamma={:.12g}'.format(*numbers('25%', 24))
    assert told(messages) == [
        f'EMA: the schedule of the checkpoint goes on, momentum={chosen.momentum:.12g}, gamma={chosen.gamma:.12g}; '
        f'mean_age=25% of 24 updates would be {other}'
    ]
    run = read_run(tmp_path / 'run')
    assert (run.updates, run.schedule, run.second) == (24, chosen, Ramp(1 / 3, chosen.gamma))


def test_run_that_starts_from_an_average_chooses_anew(toy, tmp_path):
    toy(hook=wish('25%')).train()
    runner = toy(
        'next',
        hook=wish('25%'),
        load_from=str(tmp_path / 'run' / 'epoch_2.pth'),
        train_cfg=dict(by_epoch=True, max_epochs=4),
    )
    runner.train()
    assert average_of(runner).ema_model.schedule == Ramp(*numbers('25%', 24))


def test_run_with_numbers_goes_on_with_them_under_a_mean_age(toy, tmp_path):
    toy(cfg=Config(dict(custom_hooks=[toy_hook()]))).train()
    runner = toy(
        'next',
        hook=wish('25%'),
        resume=True,
        load_from=str(tmp_path / 'run' / 'epoch_2.pth'),
        train_cfg=dict(by_epoch=True, max_epochs=4),
    )
    runner.train()
    assert average_of(runner).ema_model.schedule == Ramp(0.1, 2)


@pytest.mark.parametrize(
    ('options', 'said'),
    [
        (dict(momentum=0.1), r"mean_age='4%' works momentum and gamma out for the run, but momentum=0\.1 is given too"),
        (dict(momentum=0.1, gamma=5), 'momentum=0.1 and gamma=5 is given too'),
        (dict(mean_age='often'), "mean_age='often' of the EMAHook: a length of training is written as"),
        (dict(mean_age=0.04), "a share of the run is written as '4%'"),
        (dict(mean_age='90%'), 'no momentum makes the average 10.8 updates old at the end of a run of 12 updates'),
        (
            dict(ema_type='ExponentialMovingAverage'),
            'needs an average whose momentum ramps, .* got ExponentialMovingAver',
        ),
    ],
)
def test_what_cannot_be_is_refused(toy, options, said):
    with pytest.raises(ValueError, match=said):
        toy(hook={**wish(), **options}).train()


def test_epochs_are_for_runs_that_count_them(toy):
    with pytest.raises(ValueError, match=r"mean_age='2epochs' of the EMAHook: .* needs the number of updates in an"):
        toy(hook=wish('2epochs'), by_epoch=False).train()


def test_class_of_the_average_is_ours_only_with_a_mean_age(toy):
    runner = toy(hook=dict(type='mmyolo_ema.EMAHook'))
    runner.train()
    assert type(average_of(runner).ema_model) is ExponentialMovingAverage
    runner = toy('mmdet', hook=wish('25%', ema_type='mmdet.ExpMomentumEMA'))
    runner.train()
    assert type(average_of(runner).ema_model).__module__.startswith('mmdet')
    assert average_of(runner).ema_model.momentum == numbers('25%')[0]
