"""The average of one schedule, made of snapshots of others.

What a snapshot holds is ``sum_t w_i(t) * source_t``. A sum of snapshots with coefficients c is such an average too,
with the weights ``sum_i c_i w_i``, so the coefficients that bring these nearest to the wanted weights are found by
least squares, from inner products alone. Two constraints hold exactly: the coefficients sum to 1, and the mean time is
the wanted one, so that what does not change, and what changes at an even rate, is reproduced without error. Karras et
al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2023, fit power functions so, without the
constraints.
"""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np
from numpy.typing import NDArray

from mmyolo_ema.posthoc.gram import Gram, Momenta, Snapshot, gram

# Below this, relative to the target, what a snapshot lacks is rounding.
_SAME = 1e-12

# Mean times that differ by less than this, relative to what they lack of the wanted one, are as good as one.
_ONE_TIME = 1e-6


class Fit(NamedTuple):
    """An average made of others.

    Attributes:
        coefficients: One for each snapshot, of shape (n,), float64; they sum to 1.
        reconstruction_error: Norm of what the weights lack, relative to that of the wanted weights; 0 is exact.
        amplification: Sum of the coefficients' magnitudes, by which rounding errors of the snapshots grow.
        mean_age: Mean age of the result, in updates before the end of the target.
        wanted_age: That of the target. They are equal but for rounding, unless the snapshots have one mean age, as
            one alone has.
    """

    coefficients: NDArray[np.float64]
    reconstruction_error: float
    amplification: float
    mean_age: float
    wanted_age: float

    @property
    def error(self) -> float:
        """The older name of ``reconstruction_error``."""
        return self.reconstruction_error

    @property
    def rounding(self) -> float:
        """The older name of ``amplification``."""
        return self.amplification


def fit(snapshots: Sequence[Snapshot], target: Momenta, updates: int) -> Fit:
    """Returns the coefficients that make the average of one schedule of snapshots of others.

    Args:
        snapshots: What is stored, n of them.
        target: The wanted schedule.
        updates: Number of updates after which its average is wanted, at least 1.

    Returns:
        The coefficients and how good they are.

    Raises:
        ValueError: If there are no snapshots.

    Example:
        >>> from mmyolo_ema.schedules import Constant
        >>> stored = [Snapshot(Constant(0.01), updates) for updates in range(500, 1001, 25)]
        >>> made = fit(stored, Constant(0.02), updates=1000)
        >>> round(made.reconstruction_error, 2), round(made.mean_age)
        (0.07, 49)
    """
    if not snapshots:
        raise ValueError('there are no snapshots to make an average of')
    inner = gram([*snapshots, Snapshot(target, updates)])
    coefficients = _exact(inner)
    if coefficients is None:
        coefficients = _least_squares(inner)
    with_target = np.append(coefficients, -1.0)
    squared_error = max(float(with_target @ inner.products @ with_target), 0)
    error = np.sqrt(squared_error / inner.products[-1, -1])
    end = updates - 1
    return Fit(
        coefficients,
        float(error),
        float(np.abs(coefficients).sum()),
        float(end - coefficients @ inner.times[:-1]),
        float(end - inner.times[-1]),
    )


def _exact(inner: Gram) -> Optional[NDArray[np.float64]]:
    """Returns the coefficients if one snapshot is the wanted average itself, which is then taken as it is."""
    products = inner.products
    distances = products.diagonal()[:-1] - 2 * products[:-1, -1] + products[-1, -1]
    nearest = int(np.argmin(distances))
    return np.eye(len(distances))[nearest] if distances[nearest] <= _SAME * products[-1, -1] else None


def _least_squares(inner: Gram) -> NDArray[np.float64]:
    products, wanted = inner.products[:-1, :-1], inner.products[:-1, -1]
    # Weights of averages of very different width have very different norms.
    scale = 1 / np.sqrt(products.diagonal())
    constraints, sums = [scale], [1.0]
    lacking = inner.times[:-1] - inner.times[-1]
    extent = np.ptp(lacking)
    if extent > _ONE_TIME * np.abs(lacking).max():  # otherwise there is one mean time only
        constraints.append(lacking / extent * scale)
        sums.append(0.0)
    system = np.block(
        [
            [products * scale[:, None] * scale, np.transpose(constraints)],
            [np.array(constraints), np.zeros((len(sums), len(sums)))],
        ]
    )
    solution = np.linalg.lstsq(system, np.concatenate([wanted * scale, sums]), rcond=None)[0]
    return solution[: len(wanted)] * scale
