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

__all__ = ['Gram', 'Momenta', 'Snapshot', 'gram']

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

    products: np.ndarray
    times: np.ndarray


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
    recorded = _Moments(np.zeros((len(moments), count, count)), np.zeros((len(moments), count)), np.zeros(
        (len(moments), count)))
    together, kept, times = [0.0] * len(pairs), [1.0] * count, [0.0] * count
    for step in range(max(moments)):
        momenta = [schedule(step) for schedule in schedules]
        for place, (first, second) in enumerate(pairs):
            left, right = momenta[first], momenta[second]
            together[place] = together[place] * (1 - left) * (1 - right) + left * right
        for place, momentum in enumerate(momenta):
            kept[place] *= 1 - momentum
            times[place] += momentum * (step - times[place])
        moment = moments.get(step + 1)
        if moment is not None:
            for place, (first, second) in enumerate(pairs):
                recorded.together[moment, first, second] = recorded.together[moment, second, first] = together[place]
            recorded.kept[moment], recorded.times[moment] = kept, times
            kept = [1.0] * count
    return _at(recorded, [(schedules[schedule], moments[updates]) for schedule, updates in averages])


class _Moments(NamedTuple):
    """What is known at each moment, in order: products of all pairs, what was kept since the last one, mean times."""

    together: np.ndarray
    kept: np.ndarray
    times: np.ndarray


def _at(recorded: _Moments, points: list[tuple[int, int]]) -> Gram:
    tracks, moments = np.array(points).T
    products = np.zeros((len(points), len(points)))
    for row, (track, moment) in enumerate(points):
        # What each average that is later by some moments has kept of this one's time.
        later = moments >= moment
        passed = np.cumprod(recorded.kept[moment + 1:], axis=0)
        kept = np.vstack([np.ones(recorded.kept.shape[1]), passed])[moments[later] - moment, tracks[later]]
        products[row, later] = recorded.together[moment, track, tracks[later]] * kept
    # Each pair of different moments was filled from the earlier one.
    is_filled = moments[:, None] <= moments[None, :]
    return Gram(np.where(is_filled, products, products.T), recorded.times[moments, tracks])
