import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmyolo_ema.posthoc import Snapshot, gram
from mmyolo_ema.schedules import Constant, Power, Restarted, Uniform


def test_restart_by_copy_forgets_what_was_before():
    early, late = gram([Snapshot(Restarted(Constant(0.1), 50), updates) for updates in (40, 60)]).products[0]
    assert early == 1
    assert late == 0


@given(st.floats(1e-3, 0.9), st.integers(2, 300), st.data())
def test_constant_momentum_has_the_closed_forms(momentum, updates, data):
    start, last = data.draw(st.integers(1, updates - 1)), updates - 1
    # The product with the plain mean of the updates since the start is their share: the answer to a step.
    inner = gram([Snapshot(schedule, updates) for schedule in (Constant(momentum), Restarted(Uniform(), start))])
    kept = 1 - momentum
    assert inner.products[0, 1] * (updates - start) == pytest.approx(1 - kept ** (updates - start), rel=1e-11)
    assert last - inner.times[0] == pytest.approx(kept / momentum * (1 - kept**last), rel=1e-9)
    rest = kept ** (2 * last)
    assert inner.products[0, 0] == pytest.approx(rest + momentum / (2 - momentum) * (1 - rest), rel=1e-11)


@given(st.floats(0, 30), st.integers(1, 200))
def test_power_function_has_the_closed_form(exponent, updates):
    # The product with the raw weights of an update is the weight of that update.
    raw = [Snapshot(Constant(1.0), update) for update in range(1, updates + 1)]
    weights = gram([Snapshot(Power(exponent), updates), *raw]).products[0, 1:]
    assert weights == pytest.approx(np.diff((np.arange(updates + 1) / updates) ** (exponent + 1)), abs=1e-13)
