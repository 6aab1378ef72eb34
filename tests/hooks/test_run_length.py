import pytest

from mmyolo_ema.hooks.run_length import advice
from mmyolo_ema.schedule import Ramp, suggested
from mmyolo_ema.schedule_report import Setting, report


@pytest.mark.parametrize(('updates', 'momentum', 'gamma'), [
    (17_000, 0.0002, 2000), (88_000, 0.0002, 2000), (555_000, 0.0001, 2000), (10_000_000, 0.0001, 2000),
    (480, 0.05, 40),
])
def test_runs_that_are_long_enough_get_no_advice(updates, momentum, gamma):
    assert advice(updates, momentum, gamma, 1) == ''


def test_run_that_ends_within_the_ramp_gets_advice():
    said = advice(2000, 0.0002, 2000, 1)
    assert 'will be 1.7 updates old (0.09% of the run), so they will be nearly the raw ones' in said
    assert said.endswith('momentum=0.0123 and gamma=114 would make them 4% of the run old.')


def test_run_shorter_than_the_horizon_gets_advice():
    assert 'mostly those of its beginning' in advice(2000, 0.0002, 20, 1)


@pytest.mark.parametrize(('updates', 'momentum', 'decay_for'), [
    (100_000, 0.9998, '0.0002'), (480, 0.95, '0.05'), (100_000, 0.6, '0.4'), (100_000, 0.5, None),
    (100_000, 0.01, None), (480, 0.5, None),
])
def test_average_that_is_nearly_raw_gets_advice_and_a_decay_is_named(updates, momentum, decay_for):
    said = advice(updates, momentum, 2000 if updates > 2000 else 40, 1)
    assert 'nearly the raw ones' in said
    decay = f'looks like a decay; momentum is 1 - decay: write {decay_for}.'
    assert (decay in said) if decay_for else 'decay' not in said


@pytest.mark.parametrize('updates', [1, 2, 15, 22, 480, 10_000])
def test_what_is_suggested_gets_no_advice_and_is_what_the_tool_suggests(updates):
    unsuited = Ramp(momentum=1e-5, gamma=1e5)
    said = [advice(updates, unsuited.momentum, unsuited.gamma, 1), report(Setting('', unsuited), updates).words[-1]]
    if updates == 1:
        assert not any('would make' in words for words in said)
        return
    momentum, gamma = suggested(updates)
    assert advice(updates, momentum, gamma, 1) == ''
    assert all(f'momentum={momentum} and gamma={gamma:.12g} would make' in words for words in said)
