import pytest

from mmyolo_ema.hooks.run_length import advice


@pytest.mark.parametrize(('updates', 'momentum', 'gamma'), [
    (17_000, 0.0002, 2000), (88_000, 0.0002, 2000), (555_000, 0.0001, 2000), (10_000_000, 0.0001, 2000),
    (480, 0.05, 40),
])
def test_runs_that_are_long_enough_get_no_advice(updates, momentum, gamma):
    assert advice(updates, momentum, gamma, 1) == ''


def test_run_that_ends_within_the_ramp_gets_advice():
    said = advice(2000, 0.0002, 2000, 1)
    assert 'will be 1.7 updates old (0.09% of the run), so they will be nearly the raw ones' in said
    assert 'momentum=0.012 and gamma=114' in said


def test_run_shorter_than_the_horizon_gets_advice():
    assert 'mostly those of its beginning' in advice(2000, 0.0002, 20, 1)
