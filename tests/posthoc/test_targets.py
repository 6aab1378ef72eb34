import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmyolo_ema.posthoc.targets import target
from mmyolo_ema.schedules import Constant, Power, Ramp, Restarted, Uniform, figures
from tests.helpers import weights_of


@pytest.mark.parametrize(
    ('text', 'schedule'),
    [
        ('50', Ramp(0.02, 7, 2)),
        ('2epochs', Ramp(0.025, 7, 2)),
        ('4%', Ramp(0.025, 7, 2)),
        ('last:5epochs', Restarted(Uniform(), 900)),
        ('last:1000', Restarted(Uniform(), 0)),
    ],
)
def test_text_names_an_average(text, schedule):
    assert target(text, Ramp(0.1, 7, 2), updates=1000, updates_per_epoch=20).schedule == schedule


def test_class_of_the_run_is_kept():
    assert target('50', Constant(0.1), updates=1000).schedule == Constant(0.02)
    assert target('50', Uniform(), updates=1000).schedule == Ramp(0.02)


@pytest.mark.parametrize(('deviation', 'exponent'), [(0.05, 16.9722), (0.1, 6.9372), (12**-0.5, 0)])
def test_power_function_has_the_age_deviation_that_it_is_named_by(deviation, exponent):
    schedule = target(f'power:{deviation}', Ramp(), updates=1000).schedule
    assert schedule == Power(pytest.approx(exponent, rel=1e-5))
    (at_end,) = figures(schedule, [100_000])
    assert at_end.age_deviation / 100_000 == pytest.approx(deviation, rel=1e-3)


@given(st.integers(1, 200), st.data())
def test_windows_have_the_weights_that_they_are_named_by(updates, data):
    length = data.draw(st.integers(1, updates))
    last = weights_of(target(f'last:{length}', Ramp(), updates).schedule, updates)
    assert last[updates - length :] == pytest.approx(1 / length)


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('old', 'a length of training is written as'),
        ('1', 'is the raw weights: it must be above 1 update'),
        ('triangle:50', "'triangle:50' is none of a horizon, last:LENGTH and power:DEVIATION"),
        ('last:2000', 'is not within the run of 1,000 updates'),
        ('2epochs', 'needs the number of updates in an epoch'),
        ('power:1', 'the standard deviation of the age is 0.0001 to 0.2887 of the run'),
        ('power:x', 'the standard deviation of the age'),
    ],
)
def test_other_text_is_refused(text, said):
    with pytest.raises(ValueError, match=said):
        target(text, Ramp(), updates=1000)
