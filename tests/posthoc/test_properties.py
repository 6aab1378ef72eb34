"""What holds for any schedules and snapshots, by the explicit weights of the updates."""

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from mmyolo_ema.posthoc import Snapshot, fit, gram
from mmyolo_ema.schedules import Annealing, Constant, Power, Ramp, Repeated, Restarted, Uniform
from tests.helpers import weights_of

UPDATES = 200

momenta, gammas, intervals = st.floats(1e-4, 0.9), st.floats(1, 1e3), st.integers(1, 5)
plain = st.one_of(
    st.builds(Ramp, momenta, gammas, intervals),
    st.builds(Constant, momenta, intervals),
    st.builds(Annealing, momenta, gammas, intervals),
    st.builds(Uniform, intervals),
    st.builds(Power, st.floats(0, 20), intervals),
)
# Raw weights are an average with momentum 1.
schedules = st.one_of(
    plain,
    st.builds(Restarted, plain, st.integers(0, 300)),
    st.builds(Repeated, plain, st.integers(2, 3)),
    st.just(Constant(1.0)),
)


@st.composite
def runs(draw):
    """Returns snapshots of up to three schedules and a target, as fit takes them."""
    made_with = st.sampled_from(draw(st.lists(schedules, min_size=1, max_size=3)))
    snapshot = st.builds(Snapshot, made_with, st.integers(1, UPDATES))
    return draw(st.lists(snapshot, min_size=1, max_size=8)), draw(schedules)


def explicit(weights_of, snapshots, target):
    held = np.array([weights_of(schedule, updates, UPDATES) for schedule, updates in snapshots])
    return held, weights_of(target, UPDATES)


def growth(coefficients, held, wanted):
    """By how much rounding errors of the weights grow, relative to the norm of the wanted ones."""
    return 1 + abs(coefficients) @ np.linalg.norm(held, axis=1) / np.linalg.norm(wanted)


def far_apart(held):
    return np.ptp(held @ np.arange(UPDATES)) > 1e-3


@given(runs())
def test_products_and_times_are_those_of_the_explicit_weights(run):
    snapshots, _ = run
    inner = gram(snapshots)
    held, _ = explicit(weights_of, *run)
    assert inner.products == pytest.approx(held @ held.T, rel=1e-11, abs=1e-300)
    assert inner.times == pytest.approx(held @ np.arange(UPDATES), rel=1e-11, abs=1e-300)


@given(runs())
@example(([Snapshot(Uniform(), 100), Snapshot(Power(1e-9), 100)], Constant(0.02)))
def test_constant_is_reproduced(run):
    result = fit(*run, UPDATES)
    assert result.coefficients.sum() == pytest.approx(1, abs=1e-11 * result.amplification)


@given(runs())
@example(([Snapshot(Constant(0.020001), updates) for updates in (190, 200)], Constant(0.02)))
def test_drift_is_reproduced(run):
    held, wanted = explicit(weights_of, *run)
    result = fit(*run, UPDATES)
    # One mean time can only be itself, and a snapshot that is the target but for rounding is taken as it is.
    assume(far_apart(held) and result.reconstruction_error > 2e-6)
    drift = 3 + 0.5 * np.arange(UPDATES)
    assert result.coefficients @ held @ drift == pytest.approx(wanted @ drift, abs=1e-9 * result.amplification)
    assert result.mean_age == pytest.approx(result.wanted_age, abs=1e-9 * result.amplification)


@given(runs())
def test_what_is_told_of_a_fit_is_that_of_the_explicit_weights(run):
    held, wanted = explicit(weights_of, *run)
    result = fit(*run, UPDATES)
    made, ages = result.coefficients @ held, np.arange(UPDATES)[::-1]
    error = np.linalg.norm(made - wanted) / np.linalg.norm(wanted)
    assert result.reconstruction_error == pytest.approx(error, abs=1e-7 * growth(result.coefficients, held, wanted))
    assert result.amplification == pytest.approx(abs(result.coefficients).sum())
    assert result.mean_age == pytest.approx(made @ ages, abs=1e-9 * result.amplification)
    assert result.wanted_age == pytest.approx(wanted @ ages, abs=1e-9)


@given(runs())
def test_no_change_that_keeps_the_sum_and_the_mean_time_is_nearer(run):
    held, wanted = explicit(weights_of, *run)
    result = fit(*run, UPDATES)
    lacking = result.coefficients @ held - wanted
    # Changes by snapshots of norm 1. The problem is convex: what is lacking is at right angles to all of them.
    norms, times = np.linalg.norm(held, axis=1), held @ np.arange(UPDATES)
    constraints = np.stack([np.ones(len(held)), (times - times.mean()) / (np.ptp(times) or 1)]) / norms
    gains = np.linalg.svd(constraints)[2][2:] / norms @ held @ lacking / np.linalg.norm(wanted)
    assert gains == pytest.approx(0, abs=1e-9 * growth(result.coefficients, held, wanted))


@given(runs(), st.integers(0, 8))
def test_snapshot_of_the_target_is_taken_as_it_is(run, place):
    snapshots, target = run
    stored = [*snapshots[:place], Snapshot(target, UPDATES), *snapshots[place:]]
    result = fit(stored, target, UPDATES)
    assert sorted(result.coefficients) == [0] * len(snapshots) + [1]
    assert result.reconstruction_error <= 1e-7
    held, wanted = explicit(weights_of, stored, target)
    assert result.coefficients @ held == pytest.approx(wanted, abs=1e-6)


@given(runs(), st.integers(1, 7))
def test_more_snapshots_make_no_larger_error(run, fewer):
    snapshots, target = run
    held, wanted = explicit(weights_of, *run)
    # Where all mean times are the same, that of the target is not asked for.
    assume(far_apart(held[:fewer]))
    some, more = fit(snapshots[:fewer], target, UPDATES), fit(*run, UPDATES)
    assert more.reconstruction_error <= some.reconstruction_error + 1e-6 * growth(more.coefficients, held, wanted)
