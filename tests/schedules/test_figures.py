import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmengine.registry import MODELS
from torch import nn

from mmyolo_ema.schedules import (
    Annealing,
    Constant,
    Ramp,
    Uniform,
    figures,
    mean_age,
    momentum_at,
    of_age,
    profile,
    rescaled,
    suited,
)
from tests.helpers import weights_of

momenta = st.floats(1e-6, 0.5)
gammas = st.floats(1, 1e5)
intervals = st.integers(1, 7)
schedules = st.one_of(
    st.builds(Ramp, momenta, gammas, intervals),
    st.builds(Constant, momenta, intervals),
    st.builds(Annealing, momenta, gammas, intervals),
    st.builds(Uniform, intervals),
)


@given(st.integers(0, 10**7), momenta, gammas)
def test_retained_share_is_the_product_form(step, momentum, gamma):
    # 1 - mu_t = (1 - m) (1 - q^(1+t)), q = exp(-1 / gamma)
    retained = (1 - momentum) * -math.expm1(-(1 + step) / gamma)
    assert 1 - momentum_at(step, momentum, gamma) == pytest.approx(retained, abs=1e-12)


@given(st.integers(0, 10**6), momenta, gammas)
def test_momentum_falls_towards_its_final_value(step, momentum, gamma):
    assert momentum <= momentum_at(step + 1, momentum, gamma) <= momentum_at(step, momentum, gamma) <= 1


def test_ramp_reaches_twice_the_final_momentum_after_gamma_times_log():
    end = round(2000 * math.log(1 / 1e-4))
    assert end == 18421
    assert momentum_at(end, 1e-4, 2000) == pytest.approx(2e-4, rel=1e-3)


@pytest.mark.parametrize(
    ('last_step', 'age'),
    [
        (500, 0.3),
        (2_000, 1.7),
        (5_000, 11),
        (10_000, 136),
        (20_000, 3304),
        (30_000, 7355),
        (50_000, 9640),
        (277_000, 9999),
    ],
)
def test_mean_age_of_the_yolov5_defaults(last_step, age):
    digits = 1 if age < 10 else 0
    assert round(mean_age(last_step + 1, momentum=1e-4, gamma=2000), digits) == age


@pytest.mark.parametrize('interval', [1, 3])
def test_mean_age_equals_the_age_under_the_weights_of(interval):
    weights = weights_of(Ramp(0.02, 30, interval), 300)
    expected = (weights * np.arange(300)[::-1]).sum()
    assert mean_age(300, 0.02, 30, interval) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('updates', [100, 480, 2_000, 90_000])
@pytest.mark.parametrize('share', [0.02, 0.04, 0.1])
def test_suited_schedule_makes_the_average_as_old_as_asked(updates, share):
    momentum, gamma = suited(updates, share)
    assert 0 < momentum < 1
    assert mean_age(updates, momentum, gamma) / updates == pytest.approx(share, rel=0.1)


@given(schedules, st.integers(1, 300), st.integers(1, 300))
def test_figures_are_those_of_the_weights_of(schedule, updates, start):
    weights, ages = weights_of(schedule, updates), np.arange(updates)[::-1]
    (at_end,) = figures(schedule, [updates], start)
    age = (weights * ages).sum()
    assert at_end.mean_age == pytest.approx(age, rel=1e-9, abs=1e-9)
    assert at_end.age_deviation == pytest.approx(np.sqrt((weights * (ages - age) ** 2).sum()), rel=1e-6, abs=1e-3)
    assert at_end.effective_sample_size == pytest.approx(1 / (weights**2).sum(), rel=1e-9)
    assert at_end.start == pytest.approx(weights[:start].sum(), rel=1e-9, abs=1e-12)
    assert at_end.horizon == schedule.interval / at_end.momentum


def test_figures_of_a_constant_momentum_are_the_closed_forms():
    (at_end,) = figures(Constant(0.01), [10_000])
    assert at_end.mean_age == pytest.approx((1 - 0.01) / 0.01)
    assert at_end.age_deviation == pytest.approx(math.sqrt(1 - 0.01) / 0.01)
    assert at_end.effective_sample_size == pytest.approx((2 - 0.01) / 0.01)
    assert (at_end.spread, at_end.effective_size) == (at_end.age_deviation, at_end.effective_sample_size)


@pytest.mark.parametrize(
    ('last_step', 'size'),
    [
        (500, 1.6),
        (2_000, 4.4),
        (5_000, 23),
        (10_000, 282),
        (20_000, 6_990),
        (30_000, 15_963),
        (50_000, 19_906),
        (277_000, 19_999),
    ],
)
def test_effective_sample_size_of_the_yolov5_defaults(last_step, size):
    (at_end,) = figures(Ramp(1e-4, 2000), [last_step + 1])
    assert round(at_end.effective_sample_size, 1 if size < 10 else 0) == size


def test_figures_come_in_order_and_once():
    assert [point.updates for point in figures(Ramp(), [30, 10, 30])] == [10, 30]


@given(schedules, st.integers(1, 300), st.integers(1, 50))
def test_profile_holds_the_weights_of(schedule, updates, groups):
    profiled, weights = profile(schedule, updates, groups), weights_of(schedule, updates)
    groups = min(groups, updates)
    ends = [updates * (group + 1) // groups for group in range(groups)]
    sizes = np.diff([0, *ends])
    assert np.array(profiled.weight) * sizes == pytest.approx(np.add.reduceat(weights, [0, *ends[:-1]]), abs=1e-12)
    assert (np.array(profiled.momentum) * sizes).sum() == pytest.approx(sum(map(schedule, range(updates))))
    assert profiled.updates == sorted(profiled.updates)


@pytest.mark.parametrize(
    ('name', 'schedule'),
    [
        ('ExponentialMovingAverage', Constant(0.1, interval=2)),
        ('MomentumAnnealingEMA', Annealing(0.1, 5, interval=2)),
        ('StochasticWeightAverage', Uniform(interval=2)),
        ('mmyolo_ema.ExpMomentumEMA', Ramp(0.1, 5, interval=2)),
        ('mmdet.ExpMomentumEMA', Ramp(0.1, 5)),
    ],
)
def test_schedules_are_those_of_the_classes(name, schedule):
    model = nn.Linear(1, 1, bias=False).double()
    averaged = MODELS.build(dict(type=name, **vars(schedule)), default_args=dict(model=model))
    updates = 30
    for step in range(updates):
        nn.init.constant_(model.weight, step**2)
        averaged.update_parameters(model)
    expected = (weights_of(schedule, updates) * np.arange(updates) ** 2).sum()
    assert averaged.module.weight.item() == pytest.approx(expected, rel=1e-9)


@given(st.integers(10, 2_000), st.floats(0.01, 0.5), st.integers(1, 3))
def test_schedule_of_an_age_is_that_old_at_the_end(updates, share, interval):
    age = max(share * updates, 2.0 * interval)
    momentum, gamma = of_age(updates, age, interval)
    assert mean_age(updates, momentum, gamma, interval) == pytest.approx(age, rel=1e-3)


@pytest.mark.parametrize(('updates', 'age', 'interval'), [(1, 5, 1), (100, 1000, 1), (480, 1, 5)])
def test_age_that_cannot_be_is_refused(updates, age, interval):
    with pytest.raises(ValueError, match=f'no momentum makes the average {age} updates old'):
        of_age(updates, age, interval)


@given(momenta, gammas, st.floats(0.01, 10))
def test_rescaled_schedule_forgets_as_much_over_as_many_images(momentum, gamma, factor):
    new_momentum, new_gamma = rescaled(momentum, gamma, factor)
    # What 1,000 updates of the one keep, 1,000 / factor updates of the other keep.
    assert 1000 / factor * math.log1p(-new_momentum) == pytest.approx(1000 * math.log1p(-momentum))
    assert new_gamma * factor == pytest.approx(gamma)
    assert rescaled(new_momentum, new_gamma, 1 / factor) == pytest.approx((momentum, gamma))


def test_run_without_updates_has_no_suited_momentum():
    with pytest.raises(ValueError, match='a run has at least 1 update, but got 0'):
        suited(0)
