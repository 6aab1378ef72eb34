import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmyolo_ema.posthoc import gram
from mmyolo_ema.schedule import Annealing, Constant, Power, Ramp, Restarted, Triangular, Uniform

momenta, gammas, intervals = st.floats(1e-4, 0.9), st.floats(1, 1e3), st.integers(1, 5)
plain = st.one_of(
    st.builds(Ramp, momenta, gammas, intervals), st.builds(Constant, momenta, intervals),
    st.builds(Annealing, momenta, gammas, intervals), st.builds(Uniform, intervals),
    st.builds(Power, st.floats(0, 20), intervals), st.builds(Triangular, st.integers(1, 300)))
# Raw weights are an average with momentum 1.
schedules = st.one_of(plain, st.builds(Restarted, plain, st.integers(0, 300)), st.just(Constant(1.0)))


@given(st.lists(schedules, min_size=1, max_size=3), st.data())
def test_products_and_times_are_those_of_the_explicit_weights(weights_of, tracks, data):
    point = st.tuples(st.integers(0, len(tracks) - 1), st.integers(1, 200))
    points = data.draw(st.lists(point, min_size=1, max_size=6))
    found = gram(tracks, points)
    weights = np.array([weights_of(tracks[track], updates, 200) for track, updates in points])
    assert found.products == pytest.approx(weights @ weights.T, abs=1e-12)
    assert found.times == pytest.approx(weights @ np.arange(200), abs=1e-9)


def test_restart_by_copy_forgets_what_was_before(weights_of):
    tracks = [Restarted(Constant(0.1), 50)]
    early, late = gram(tracks, [(0, 40), (0, 60)]).products[0]
    assert early == 1
    assert late == 0
