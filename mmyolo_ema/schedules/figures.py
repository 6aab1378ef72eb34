"""What an average is after a number of updates, by recursions over the updates, without an array of all of them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from mmyolo_ema.schedules.momenta import Schedule, momentum_at

#: The longest run, in updates, that is gone through update by update: ten seconds.
MOST_UPDATES = 20_000_000


def mean_age(updates: int, momentum: float = 0.0002, gamma: float = 2000, interval: int = 1) -> float:
    """Returns how old the weights in the average are, in updates, on average.

    The average after step T is ``sum_t w(t) * source_t`` with weights that sum
    to 1; its mean age is ``T - sum_t w(t) * t``. It follows from averaging the
    signal t itself: each step ages what is there by one, and an update with
    momentum m replaces the share m of it by something of age 0.

    Args:
        updates: Number of updates made, steps 0 to ``updates - 1``; at least 1.
        momentum: As in :func:`mmyolo_ema.schedules.momentum_at`. Defaults to 0.0002.
        gamma: As in :func:`mmyolo_ema.schedules.momentum_at`. Defaults to 2000.
        interval: The average moves only at steps that are a multiple of it.
            Defaults to 1.

    Returns:
        The mean age in updates: 0 after the first, towards
        ``(1 - momentum) / momentum`` in a long run with ``interval=1``.

    Example:
        >>> round(mean_age(2_000, momentum=0.0001), 1)
        1.7
        >>> round(mean_age(277_000, momentum=0.0001))
        9999
    """
    age = 0.0
    for step in range(1, updates):
        age = aged(age, step, momentum_at(step, momentum, gamma), interval)
    return age


def aged(age: float, step: int, momentum: float, interval: int = 1) -> float:
    """Returns the mean age of the average after one more update.

    Args:
        age: The mean age before it, in updates.
        step: Number of updates before it.
        momentum: The weight of the source in it, in [0, 1].
        interval: As in :func:`mean_age`. Defaults to 1.

    Example:
        >>> aged(19.0, step=480, momentum=0.05)
        19.0
    """
    return (age + 1) * (1 - momentum) if step % interval == 0 else age + 1


class Figures(NamedTuple):
    """What an average is after a number of updates.

    Attributes:
        updates: Number of updates made.
        momentum: Weight of the source in the last one that moved the average.
        horizon: ``interval / momentum``: updates over which the average forgets all but a share of 1 / e.
        mean_age: How old what it holds is, on average, in updates.
        age_deviation: Standard deviation of that age, in updates.
        effective_sample_size: ``1 / sum_t w(t) ** 2``: of how many updates a plain mean would be as smooth.
        start: Weight that is left on the updates at the start of the run.
    """

    updates: int
    momentum: float
    horizon: float
    mean_age: float
    age_deviation: float
    effective_sample_size: float
    start: float

    @property
    def spread(self) -> float:
        """The older name of ``age_deviation``."""
        return self.age_deviation

    @property
    def effective_size(self) -> float:
        """The older name of ``effective_sample_size``."""
        return self.effective_sample_size


def figures(schedule: Schedule, points: Sequence[int], start: int = 1) -> list[Figures]:
    """Returns what an average is at some points of a run.

    Args:
        schedule: Gives the momentum of each update.
        points: Numbers of updates made, each at least 1.
        start: Number of updates at the start of the run whose weight is reported. Defaults to 1, the copy.

    Returns:
        The figures, in ascending order of the points, each once.

    Raises:
        ValueError: If a point is below 1 or above :data:`MOST_UPDATES`.

    Example:
        >>> from mmyolo_ema.schedules import Ramp
        >>> for point in figures(Ramp(momentum=0.0001, gamma=2000), [2_000, 277_000]):
        ...     print(round(point.mean_age, 1), round(point.effective_sample_size, 1))
        1.7 4.4
        9999.0 19999.0
    """
    wanted = set(points)
    if min(wanted) < 1 or max(wanted) > MOST_UPDATES:
        raise ValueError(f'a run has 1 to {MOST_UPDATES:,} updates, but got {min(wanted):,} to {max(wanted):,}')
    at_points = []
    age = square = weight = 0.0  # of the age, of its square, of the start
    norm = momentum = 1.0  # sum of the squared weights; the last momentum that was not 0
    for step in range(max(wanted)):
        source = schedule(step)
        kept = 1 - source
        square = (square + 2 * age + 1) * kept
        age = (age + 1) * kept
        norm = norm * kept * kept + source * source
        weight = weight * kept + source if step < start else weight * kept
        if source:
            momentum = source
        if step + 1 in wanted:
            deviation = math.sqrt(max(square - age * age, 0.0))
            at_points.append(
                Figures(step + 1, momentum, schedule.interval / momentum, age, deviation, 1 / norm, weight)
            )
    return at_points


class Profile(NamedTuple):
    """Momentum and weight of the updates of a run, each the mean over as many groups as were asked for.

    ``updates`` holds the number of updates before the middle of each group; the weights are those in the average at the
    end of the run.
    """

    updates: list[float]
    momentum: list[float]
    weight: list[float]


def profile(schedule: Schedule, updates: int, groups: int = 400) -> Profile:
    """Returns the momentum over a run, and the weight that each of its updates has in the average at its end.

    Args:
        schedule: Gives the momentum of each update.
        updates: Number of updates in the run, at least 1.
        groups: Into how many groups of consecutive updates the run is divided, at most. Defaults to 400.

    Example:
        >>> from mmyolo_ema.schedules import Constant
        >>> profile(Constant(0.5), 4, groups=2)
        Profile(updates=[1.0, 3.0], momentum=[0.75, 0.5], weight=[0.125, 0.375])
    """
    groups = min(groups, updates)
    ends = [updates * (group + 1) // groups for group in range(groups)]
    middles, momenta, weights = [], [], []
    later = 1.0  # what the updates after this one keep of it
    for begin, end in reversed(list(zip([0, *ends], ends))):
        momentum = weight = 0.0
        for step in range(end - 1, begin - 1, -1):
            source = schedule(step)
            momentum += source
            weight += source * later
            later *= 1 - source
        middles.append((begin + end) / 2)
        momenta.append(momentum / (end - begin))
        weights.append(weight / (end - begin))
    return Profile(middles[::-1], momenta[::-1], weights[::-1])
