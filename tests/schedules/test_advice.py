import pytest

from mmyolo_ema.cli.schedule_tables import Setting, report
from mmyolo_ema.schedules import Constant, Ramp, advice, suggested


@pytest.mark.slow
@pytest.mark.parametrize(
    ('updates', 'momentum', 'gamma'),
    [
        (17_000, 0.0002, 2000),
        (88_000, 0.0002, 2000),
        (555_000, 0.0001, 2000),
        (10_000_000, 0.0001, 2000),
        (480, 0.05, 40),
    ],
)
def test_runs_that_are_long_enough_get_no_advice(updates, momentum, gamma):
    assert advice(Ramp(momentum, gamma), updates) == ''


def test_run_that_ends_within_the_ramp_gets_advice():
    said = advice(Ramp(0.0002, 2000), 2000)
    assert 'will be 1.72 updates old (0.09% of the run), so they will be nearly the raw ones' in said
    assert said.endswith('momentum=0.0123 and gamma=114 would make them 4% of the run old.')


def test_run_shorter_than_the_horizon_gets_advice():
    assert 'mostly those of its beginning' in advice(Ramp(0.0002, 20), 2000)


@pytest.mark.parametrize(
    ('updates', 'momentum', 'decay_for'),
    [
        (100_000, 0.9998, '0.0002'),
        (480, 0.95, '0.05'),
        (100_000, 0.6, '0.4'),
        (100_000, 0.5, None),
        (100_000, 0.01, None),
        (480, 0.5, None),
    ],
)
def test_average_that_is_nearly_raw_gets_advice_and_a_decay_is_named(updates, momentum, decay_for):
    said = advice(Ramp(momentum, 2000 if updates > 2000 else 40), updates)
    assert 'nearly the raw ones' in said
    decay = f'looks like a decay: momentum is 1 - decay, here {decay_for}.'
    assert (decay in said) if decay_for else 'decay' not in said


@pytest.mark.parametrize('updates', [1, 2, 15, 22, 480, 10_000])
def test_what_is_suggested_gets_no_advice(updates):
    said = advice(Ramp(momentum=1e-5, gamma=1e5), updates)
    if updates == 1:
        assert 'would make' not in said
        return
    momentum, gamma = suggested(updates)
    assert advice(Ramp(momentum, gamma), updates) == ''
    assert f'momentum={momentum} and gamma={gamma:.12g} would make' in said


@pytest.mark.parametrize('interval', [1, 3])
def test_what_would_suit_is_as_old_as_it_says(interval):
    said = advice(Ramp(gamma=1e5, interval=interval), 2_000)
    momentum, gamma = (float(part.split('=')[1].split()[0]) for part in said.split('. ')[1].split(' and ')[:2])
    better = report(Setting('better', Ramp(momentum, gamma, interval)), 2_000)
    assert better.at_end.mean_age / 2_000 == pytest.approx(0.04, rel=0.01)


@pytest.mark.parametrize('updates', [2_000, 5_000, 8_000, 20_000])
def test_report_and_advice_agree(updates):
    said, words = advice(Ramp(), updates), report(Setting('', Ramp()), updates).answer
    assert (words[-1] == said) is bool(said) is (updates < 10_000)
    assert any('the end,' in line and 'practically the raw weights' in line for line in words) is bool(said)


def test_average_of_another_class_is_told_the_class_that_would_suit():
    said = advice(Constant(0.0002), 2_000)
    assert said.startswith('momentum=0.0002 does not suit this run of 2,000 updates')
    assert "ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.0123 and gamma=114 would make them" in said
