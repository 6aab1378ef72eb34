"""Inner products of the weights that averages put on the updates of a run.

An average at update T is ``sum_t w(t) * source_t``. Its weights form a vector over the updates; what two averages have
in common, and how well some make up for another, follows from the inner products of these vectors. They are computed
here by recursions over the updates, without the vectors:

.. code-block:: none

    G_ab(t) = (1 - mu^a_t) (1 - mu^b_t) G_ab(t - 1) + mu^a_t mu^b_t            both at update t
    <w_a(t_i), w_b(t_j)> = G_ab(t_i) * prod_(t_i < s <= t_j) (1 - mu^b_s)      t_i <= t_j: what b keeps of its past
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

#: The momentum of each update, by the number of updates before it; hashable, as the schedules are.
Momenta = Callable[[int], float]


class Snapshot(NamedTuple):
    """A stored average: the schedule that made it, and how many updates it had, at least 1."""

    schedule: Momenta
    updates: int


class Gram(NamedTuple):
    """Inner products and mean times of some averages, each at a point of its own.

    Attributes:
        products: Inner product of the weights of each two, of shape (n, n).
        times: Mean of the update's number under the weights of each, counted from 0, of shape (n,).
    """

    products: NDArray[np.float64]
    times: NDArray[np.float64]


def gram(averages: Sequence[Snapshot]) -> Gram:
    """Returns the inner products of n averages.

    Args:
        averages: The averages, of J schedules.

    Returns:
        The products in the order of the averages, in float64.

    Example:
        >>> from mmyolo_ema.schedules import Constant, Uniform
        >>> gram([Snapshot(Constant(0.5), 2), Snapshot(Uniform(), 4)]).products
        array([[0.5 , 0.25],
               [0.25, 0.25]])
    """
    moments = {updates: place for place, updates in enumerate(sorted({updates for _, updates in averages}))}
    schedules = {schedule: place for place, schedule in enumerate(dict.fromkeys(schedule for schedule, _ in averages))}
    count = len(schedules)
    pairs = [(first, second) for first in range(count) for second in range(first, count)]
    # At each moment: products of all pairs, what was kept since the moment before, mean times.
    products_at, kept_since = np.zeros((len(moments), count, count)), np.zeros((len(moments), count))
    times_at = np.zeros((len(moments), count))
    products, kept, times = [0.0] * len(pairs), [1.0] * count, [0.0] * count
    for step in range(max(moments)):
        momenta = [schedule(step) for schedule in schedules]
        for place, (first, second) in enumerate(pairs):
            left, right = momenta[first], momenta[second]
            products[place] = products[place] * (1 - left) * (1 - right) + left * right
        for place, momentum in enumerate(momenta):
            kept[place] *= 1 - momentum
            times[place] += momentum * (step - times[place])
        moment = moments.get(step + 1)
        if moment is not None:
            for product, (first, second) in zip(products, pairs):
                products_at[moment, first, second] = products_at[moment, second, first] = product
            kept_since[moment], times_at[moment] = kept, times
            kept = [1.0] * count
    tracks = np.array([schedules[schedule] for schedule, _ in averages])
    when = np.array([moments[updates] for _, updates in averages])
    return Gram(_between(products_at, kept_since, tracks, when), times_at[when, tracks])


def _between(
    products_at: NDArray[np.float64],
    kept_since: NDArray[np.float64],
    tracks: NDArray[np.int64],
    when: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Returns the inner products of averages of some schedules at some moments."""
    products = np.zeros((len(tracks), len(tracks)))
    for row, (track, moment) in enumerate(zip(tracks, when)):
        # What each average that is later by some moments has kept of this one's time.
        later = when >= moment
        passed = np.cumprod(kept_since[moment + 1 :], axis=0)
        kept = np.vstack([np.ones(kept_since.shape[1]), passed])[when[later] - moment, tracks[later]]
        products[row, later] = products_at[moment, track, tracks[later]] * kept
    # Each pair of different moments was filled from the earlier one.
    return np.where(when[:, None] <= when, products, products.T)
