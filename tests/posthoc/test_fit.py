from math import factorial, prod

import numpy as np
import pytest

from mmyolo_ema.posthoc import Snapshot, fit
from mmyolo_ema.schedules import Constant, Power, Ramp, Restarted, Uniform
from tests.helpers import weights_of

EPOCH, RUN = 924, 277_200


def yolo(horizon):
    return Ramp(1 / horizon, 2000)


def every(step, count, horizon=10_000):
    return [Snapshot(yolo(horizon), RUN - step * back) for back in reversed(range(count))]


TRACK = Ramp(0.01, 100)
TARGETS = [Constant(0.02), Ramp(0.005, 50), Power(6.9), Restarted(Uniform(), 800)]


@pytest.fixture
def stored():
    return [Snapshot(TRACK, updates) for updates in range(20, 1001, 20)]


@pytest.mark.parametrize('target', TARGETS)
def test_error_is_that_of_the_explicit_weights(stored, target):
    result = fit(stored, target, updates=1000)
    made = result.coefficients @ np.array([weights_of(TRACK, snapshot.updates, 1000) for snapshot in stored])
    wanted = weights_of(target, 1000, 1000)
    error = np.linalg.norm(made - wanted) / np.linalg.norm(wanted)
    assert result.reconstruction_error == result.error == pytest.approx(error, rel=1e-6, abs=1e-6)
    assert result.amplification == result.rounding == pytest.approx(abs(result.coefficients).sum())
    ages = np.arange(1000)[::-1]
    assert (result.mean_age, result.wanted_age) == (pytest.approx(made @ ages), pytest.approx(wanted @ ages))


@pytest.mark.parametrize('target', TARGETS)
def test_what_is_constant_or_drifts_evenly_is_reproduced(stored, target):
    result = fit(stored, target, updates=1000)
    drift = 3 + 0.5 * np.arange(1000)
    held = np.array([weights_of(TRACK, snapshot.updates, 1000) @ drift for snapshot in stored])
    assert result.coefficients.sum() == pytest.approx(1, abs=1e-9)
    assert result.coefficients @ held == pytest.approx(weights_of(target, 1000, 1000) @ drift, rel=1e-9)


def test_no_other_coefficients_are_nearer(stored):
    target = Constant(0.02)
    best = fit(stored, target, updates=1000)
    held = np.array([weights_of(TRACK, snapshot.updates, 1000) for snapshot in stored])
    wanted = weights_of(target, 1000, 1000)
    # Changes that keep the sum and the mean time.
    constraints = np.stack([np.ones(len(stored)), held @ np.arange(1000)])
    for change in np.linalg.svd(constraints)[2][2:]:
        for size in (1e-3, -1e-3):
            changed = (best.coefficients + size * change) @ held - wanted
            assert np.linalg.norm(changed) >= best.reconstruction_error * np.linalg.norm(wanted) - 1e-12


def test_stored_snapshot_is_taken_as_it_is(stored):
    result = fit(stored, TRACK, updates=600)
    assert result.coefficients[29] == 1
    assert np.count_nonzero(result.coefficients) == 1
    assert (result.reconstruction_error, result.amplification) == (0, 1)


@pytest.mark.parametrize(('horizon', 'error'), [(1_000, 0.23), (2_000, 0.106), (5_000, 0.027), (20_000, 0.015)])
def test_snapshots_of_each_epoch_of_the_yolov5_recipe(horizon, error):
    result = fit(every(EPOCH, 100), yolo(horizon), RUN)
    assert result.reconstruction_error == pytest.approx(error, rel=0.03)
    assert result.mean_age == pytest.approx(result.wanted_age, rel=1e-6)
    # The law for one track: S |1 / H' - 1 / H| / sqrt(12).
    assert result.reconstruction_error == pytest.approx(EPOCH * abs(1 / horizon - 1 / 10_000) / 12**0.5, rel=0.11)


@pytest.mark.parametrize('spacing', [10, 20, 40])
@pytest.mark.parametrize('horizon', [40, 60, 150])
@pytest.mark.parametrize('horizons', [[100], [200, 100], [400, 100, 25]])
def test_error_of_dense_snapshots_follows_the_law(horizons, horizon, spacing):
    count = len(horizons)
    stored = [Snapshot(Constant(1 / kept), updates) for updates in range(spacing, 2401, spacing) for kept in horizons]
    result = fit(stored, Constant(1 / horizon), updates=2400)
    # Between two snapshots an exponential is approximated by J others: Legendre's polynomial of degree J is lacking.
    lacking = prod(spacing * abs(1 / horizon - 1 / kept) for kept in horizons)
    law = lacking * factorial(count) / (factorial(2 * count) * (2 * count + 1) ** 0.5)
    assert result.reconstruction_error == pytest.approx(law, rel=0.05)
    assert result.mean_age == pytest.approx(result.wanted_age, rel=1e-9)


@pytest.mark.parametrize(('horizon', 'error'), [(1_000, 0.0136), (2_000, 0.0), (5_000, 0.0014)])
def test_a_second_track_makes_short_horizons_exact(horizon, error):
    stored = [*every(EPOCH, 30), *every(EPOCH, 30, horizon=2_000)]
    result = fit(stored, yolo(horizon), RUN)
    assert result.reconstruction_error == pytest.approx(error, rel=0.05, abs=1e-6)


def test_each_further_track_is_nearer_to_the_average_that_was_tracked():
    steps = np.arange(2000)
    source = np.sin(steps / 15) + np.cos(steps / 400) + steps / 500
    schedules, target = [Ramp(1 / horizon, 50) for horizon in (100, 25, 400)], Ramp(1 / 60, 50)
    tracked, apart = weights_of(target, 2000) @ source, []
    for count in (1, 2, 3):
        stored = [Snapshot(schedule, updates) for schedule in schedules[:count] for updates in range(50, 2001, 50)]
        values = [weights_of(schedule, updates) @ source[:updates] for schedule, updates in stored]
        apart.append(abs(fit(stored, target, 2000).coefficients @ values - tracked))
    assert apart[1] < apart[0] / 10
    assert apart[2] < apart[1] / 10


def test_two_files_with_three_tracks_make_half_and_twice_the_horizon():
    def errors(*moments):
        stored = [Snapshot(yolo(horizon), updates) for horizon in (10_000, 2_500, 40_000) for updates in moments]
        return [fit(stored, yolo(horizon), RUN).reconstruction_error for horizon in (5_000, 20_000)]

    assert errors(RUN // 2, RUN) == pytest.approx([0.088, 0.091], abs=0.001)
    assert errors(RUN) == pytest.approx([0.113, 0.199], abs=0.001)


@pytest.mark.parametrize('place', range(3))
def test_average_that_is_one_of_three_tracks_is_taken_as_it_is(place):
    schedules = [Ramp(0.01, 100), Ramp(0.04, 100), Power(6.9)]
    stored = [Snapshot(schedule, updates) for schedule in schedules for updates in (300, 600, 1000)]
    result = fit(stored, schedules[place], 1000)
    assert list(np.flatnonzero(result.coefficients)) == [3 * place + 2]
    assert (result.coefficients.sum(), result.reconstruction_error) == (1, 0)


def test_horizon_that_is_out_of_reach_has_a_large_error():
    assert fit(every(10 * EPOCH, 30), yolo(1_000), RUN).reconstruction_error > 0.7
    assert fit(every(EPOCH, 30), yolo(50_000), RUN).reconstruction_error > 0.5


def test_raw_weights_make_short_horizons(stored):
    raw = [Snapshot(Constant(1.0), snapshot.updates) for snapshot in stored]
    target = Constant(0.2)
    with_raw, without = fit([*stored, *raw], target, 1000), fit(stored, target, 1000)
    assert with_raw.reconstruction_error < 0.9 * without.reconstruction_error


def test_one_snapshot_is_all_there_is():
    result = fit([Snapshot(Constant(0.01), 900)], Constant(0.02), 1000)
    assert result.coefficients == pytest.approx([1])
    assert result.mean_age != pytest.approx(result.wanted_age)


def test_no_snapshots_are_refused():
    with pytest.raises(ValueError, match='there are no snapshots to make an average of'):
        fit([], Constant(0.02), 1000)
