import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmyolo_ema.schedule import mean_age, momentum_at, suited

momenta = st.floats(1e-6, 0.5)
gammas = st.floats(1, 1e5)


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


@pytest.mark.parametrize(('last_step', 'age'), [(500, 0.3), (2_000, 1.7), (5_000, 11), (10_000, 136), (20_000, 3304),
                                              (30_000, 7355), (50_000, 9640), (277_000, 9999)])
def test_mean_age_of_the_yolov5_defaults(last_step, age):
    digits = 1 if age < 10 else 0
    assert round(mean_age(last_step + 1, momentum=1e-4, gamma=2000), digits) == age


@pytest.mark.parametrize('interval', [1, 3])
def test_mean_age_equals_the_age_under_the_explicit_weights(interval):
    updates, momentum, gamma = 300, 0.02, 30
    mu = np.array([1.0] + [momentum_at(t, momentum, gamma) if t % interval == 0 else 0 for t in range(1, updates)])
    kept = np.append(np.cumprod((1 - mu[1:])[::-1])[::-1], 1)
    weights = mu * kept
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    expected = (weights * (updates - 1 - np.arange(updates))).sum()
    assert mean_age(updates, momentum, gamma, interval) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('updates', [100, 480, 2_000, 90_000])
@pytest.mark.parametrize('share', [0.02, 0.04, 0.1])
def test_suited_schedule_makes_the_average_as_old_as_asked(updates, share):
    momentum, gamma = suited(updates, share)
    assert 0 < momentum < 1
    assert mean_age(updates, momentum, gamma) / updates == pytest.approx(share, rel=0.1)
