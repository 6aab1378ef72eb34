import numpy as np
import pytest


def explicit(schedule, updates, length):
    """Returns the weight of each update in an average, by the product formula; 0 for those that come later."""
    mu = np.array([schedule(step) for step in range(updates)])
    weights = np.zeros(length)
    weights[:updates] = mu * np.append(np.cumprod((1 - mu[1:])[::-1])[::-1], 1)
    assert weights.sum() == pytest.approx(1, abs=1e-12)
    return weights


@pytest.fixture
def weights_of():
    return explicit
