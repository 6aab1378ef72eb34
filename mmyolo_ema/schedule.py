"""Momentum at a step of the training, and what it means for the average.

The one place that knows the formula. Plain Python floats: no torch, no numpy.

A step is one call of the average's update. Step 0 copies the source, so its
momentum is 1; at a later step t the averaged weights become
``(1 - momentum_t) * averaged + momentum_t * source``. So after T steps the average is
``sum_t w(t) * source_t`` with ``w(t) = momentum_t * prod_(s > t) (1 - momentum_s)``, and the
weights sum to 1. All that is said about an average follows from them by recursions over the
steps, without an array of all steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = [
    'MOST_UPDATES', 'SUITED_SHARE', 'USUAL_AGES', 'Annealing', 'Constant', 'Figures', 'Power', 'Profile', 'Ramp',
    'Repeated', 'Restarted', 'Schedule', 'Triangular', 'Uniform', 'aged', 'figures', 'is_nearly_raw', 'mean_age',
    'momentum_at', 'of_age', 'profile', 'rescaled', 'suggested', 'suited', 'three_digits'
]

#: Mean ages, as shares of the run, between which averages have been found useful: from Ajroldi et al., ICML 2025, to
#: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2023.
USUAL_AGES = (0.01, 0.2)

#: The mean age that is suggested where none is asked for, as a share of the run: that of the long COCO recipes.
SUITED_SHARE = 0.04

# Mean ages, in updates, below and above which an average is short or long whatever the run.
_FEW, _MANY = 5, 1000

#: The longest run, in updates, that is gone through update by update: ten seconds.
MOST_UPDATES = 20_000_000


def momentum_at(step: int, momentum: float = 0.0002, gamma: float = 2000) -> float:
    """Returns the momentum of an update, ramped down exponentially from 1.

    ``(1 - momentum) * exp(-(1 + step) / gamma) + momentum``, the ramp that
    YOLOv5 introduced and YOLOX and RTMDet train with. It comes within twice its
    final value after ``gamma * ln(1 / momentum)`` steps, not after ``gamma``.

    Args:
        step: Number of updates before this one. Step 0 copies, whatever this
            function returns for it.
        momentum: Momentum that the ramp ends at, in (0, 1): the weight of the
            newest source. Its inverse is the horizon, in updates. Defaults to
            0.0002.
        gamma: Length scale of the ramp, in updates, above 0. Defaults to 2000.

    Returns:
        The weight of the source in this update, in (0, 1).

    Example:
        >>> round(momentum_at(1), 6)
        0.999001
        >>> round(momentum_at(100_000), 6)
        0.0002
    """
    return (1 - momentum) * math.exp(-float(1 + step) / gamma) + momentum


def mean_age(updates: int, momentum: float = 0.0002, gamma: float = 2000, interval: int = 1) -> float:
    """Returns how old the weights in the average are, in updates, on average.

    The average after step T is ``sum_t w(t) * source_t`` with weights that sum
    to 1; its mean age is ``T - sum_t w(t) * t``. It follows from averaging the
    signal t itself: each step ages what is there by one, and an update with
    momentum m replaces the share m of it by something of age 0.

    Args:
        updates: Number of updates made, steps 0 to ``updates - 1``; at least 1.
        momentum: As in :func:`momentum_at`. Defaults to 0.0002.
        gamma: As in :func:`momentum_at`. Defaults to 2000.
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


def suited(updates: int, share: float = SUITED_SHARE) -> tuple[float, float]:
    """Returns the momentum and gamma that make the average a given share of a run old at the run's end.

    ``momentum = 1 / (share * updates + 1)``, whose mean age in the long run is ``share * updates``, and ``gamma`` such
    that the ramp, which comes within twice the final momentum after ``gamma * ln(1 / momentum)`` updates, takes a
    quarter of the run. For 100 updates and more the share is met within a twentieth of it.

    Args:
        updates: Number of updates in the run, at least 1.
        share: Mean age at the end, as a share of the run, in (0, 0.1]. Defaults to 0.04, that of the long COCO recipes.

    Returns:
        The momentum and gamma.

    Raises:
        ValueError: If the run has no updates.

    Example:
        >>> momentum, gamma = suited(480)
        >>> round(momentum, 3), round(gamma), round(mean_age(480, momentum, gamma) / 480, 3)
        (0.05, 40, 0.04)
    """
    if updates < 1:
        raise ValueError(f'a run has at least 1 update, but got {updates}')
    momentum = 1 / (share * updates + 1)
    return momentum, updates / 4 / math.log(1 / momentum)


def of_age(updates: int, age: float, interval: int = 1) -> tuple[float, float]:
    """Returns the momentum and gamma of :func:`suited`, refined until the mean age at the end is the wanted one.

    Args:
        updates: Number of updates in the run, at least 1.
        age: The wanted mean age at the end, in updates, above 0. It is met within a thousandth.
        interval: As in :func:`mean_age`. Defaults to 1.

    Raises:
        ValueError: If no momentum makes the average so old, or so young, in a run of this length.

    Example:
        >>> momentum, gamma = of_age(480, 96)
        >>> round(mean_age(480, momentum, gamma))
        96
    """
    aim = age
    for _ in range(60):
        # The ramp is made for a share of the run; what it adds to the age is taken off the aim.
        momentum, gamma = suited(updates, aim / updates)
        reached = mean_age(updates, momentum, gamma, interval)
        if abs(reached - age) <= 1e-3 * age:
            return momentum, gamma
        aim *= min(max(age / reached, 0.1), 10) if reached else 10
        if not 1e-6 < aim < 1e6 * updates:
            break
    raise ValueError(f'no momentum makes the average {age:g} updates old at the end of a run of {updates:,} updates' +
                     (f' with interval={interval}' if interval != 1 else ''))


def suggested(updates: int, interval: int = 1) -> tuple[float, float]:
    """Returns the momentum and gamma that hook and tools suggest for a run: :data:`SUITED_SHARE` of it old at its end.

    Args:
        updates: Number of updates in the run, at least 1.
        interval: As in :func:`mean_age`. Defaults to 1.

    Raises:
        ValueError: If no momentum makes the average so old in a run of this length.

    Example:
        >>> suggested(480)
        (0.0495, 39.9)
    """
    momentum, gamma = of_age(updates, SUITED_SHARE * updates, interval)
    return three_digits(momentum), three_digits(gamma)


def three_digits(number: float) -> float:
    """Returns a number with the three significant digits in which momentum and gamma are suggested.

    Example:
        >>> three_digits(0.0123456), three_digits(1234.5)
        (0.0123, 1230.0)
    """
    return float(f'{number:.3g}')


def is_nearly_raw(updates: int, age: float) -> bool:
    """Whether an average of a mean age is nearly the newest weights, for a run of a length.

    It is if its age is below what has been found useful and it holds a few updates only, or if it is far below and not
    long in itself.

    Example:
        >>> is_nearly_raw(100_000, age=1.0), is_nearly_raw(100_000, age=4999.0)
        (True, False)
    """
    return age < USUAL_AGES[0] * updates and (age < _FEW or age < min(USUAL_AGES[0] / 5 * updates, _MANY))


def rescaled(momentum: float, gamma: float, factor: float) -> tuple[float, float]:
    """Returns the momentum and gamma that average over as many images when an update stands for more of them.

    ``1 - momentum`` becomes ``(1 - momentum) ** factor`` and gamma ``gamma / factor``: the scaling rule of Busbridge
    et al., "How to Scale Your EMA", NeurIPS 2023.

    Args:
        momentum: As in :func:`momentum_at`.
        gamma: As in :func:`momentum_at`.
        factor: The new number of images in an update over the old one, above 0.

    Example:
        >>> momentum, gamma = rescaled(0.0002, 2000, factor=1 / 8)
        >>> round(momentum, 6), gamma
        (2.5e-05, 16000.0)
    """
    return -math.expm1(factor * math.log1p(-momentum)), gamma / factor


class Schedule:
    """The weight of the source in each update of an average.

    Called with the number of updates before this one: 1 at step 0, and 0 at steps that are no multiple of ``interval``.
    """

    interval: int

    def __call__(self, step: int) -> float:
        if step % self.interval:
            return 0.0
        return self.momentum_at(step) if step else 1.0

    def momentum_at(self, step: int) -> float:
        """Returns the momentum of an update that moves the average.

        Args:
            step: Number of updates before it, at least 1.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Ramp(Schedule):
    """The schedule of ``ExpMomentumEMA``: see :func:`momentum_at`."""

    momentum: float = 0.0002
    gamma: float = 2000
    interval: int = 1

    def momentum_at(self, step: int) -> float:
        return momentum_at(step, self.momentum, self.gamma)


@dataclass(frozen=True)
class Constant(Schedule):
    """The schedule of MMEngine's ``ExponentialMovingAverage``: the same momentum in each update after the first."""

    momentum: float = 0.0002
    interval: int = 1

    def momentum_at(self, step: int) -> float:
        return self.momentum


@dataclass(frozen=True)
class Annealing(Schedule):
    """The schedule of MMEngine's ``MomentumAnnealingEMA``: ``max(momentum, gamma / (gamma + step))``."""

    momentum: float = 0.0002
    gamma: float = 100
    interval: int = 1

    def momentum_at(self, step: int) -> float:
        return max(self.momentum, self.gamma / (self.gamma + step))


@dataclass(frozen=True)
class Uniform(Schedule):
    """The schedule of MMEngine's ``StochasticWeightAverage``, the mean of all: ``1 / (step // interval + 1)``."""

    interval: int = 1

    def momentum_at(self, step: int) -> float:
        return 1 / (step // self.interval + 1)


@dataclass(frozen=True)
class Power(Schedule):
    """Weights that grow with a power of the step: ``w(t) = ((t + 1) / T) ** (g + 1) - (t / T) ** (g + 1)``.

    Here g is the exponent. The age of the average is the same share of the run at each point of it. From Karras et al.,
    "Analyzing and Improving the Training Dynamics of Diffusion Models", 2023.
    """

    exponent: float
    interval: int = 1

    def momentum_at(self, step: int) -> float:
        return 1 - (step / (step + self.interval))**(self.exponent + 1)


@dataclass(frozen=True)
class Triangular(Schedule):
    """Weights that rise evenly over the first half of a number of updates, and fall evenly over the second.

    For the last ``length`` updates of a run: see :class:`Restarted`. Beyond them the average is the model itself.
    """

    interval = 1
    length: int

    def momentum_at(self, step: int) -> float:
        left = self.length - step - 1
        if left < 0:
            return 1.0
        if step < left:
            return 2 / (step + 2)
        return (left + 1) / ((self.length + 1)**2 // 4 - left * (left + 1) // 2)


@dataclass(frozen=True)
class _Changed(Schedule):
    """A schedule made of another one."""

    schedule: Schedule

    @property
    def interval(self) -> int:  # type: ignore[override]
        return self.schedule.interval


@dataclass(frozen=True)
class Restarted(_Changed):
    """A schedule that begins anew at a step: until then the average is the model itself."""

    start: int

    def __call__(self, step: int) -> float:
        return 1.0 if step <= self.start else self.schedule(step - self.start)


@dataclass(frozen=True)
class Repeated(_Changed):
    """A schedule whose updates are made several times each, as by a class that averages a tensor once a name."""

    times: int

    def __call__(self, step: int) -> float:
        return 1 - (1 - self.schedule(step))**self.times


class Figures(NamedTuple):
    """What an average is after a number of updates.

    Attributes:
        updates: Number of updates made.
        momentum: Weight of the source in the last one that moved the average.
        horizon: ``interval / momentum``: updates over which the average forgets all but a share of 1 / e.
        mean_age: How old what it holds is, on average, in updates.
        spread: Standard deviation of that age, in updates.
        effective_size: ``1 / sum_t w(t) ** 2``: of how many updates a plain mean would be as smooth.
        start: Weight that is left on the updates at the start of the run.
    """

    updates: int
    momentum: float
    horizon: float
    mean_age: float
    spread: float
    effective_size: float
    start: float


def figures(schedule: Schedule, points: Sequence[int], start: int = 1) -> list[Figures]:
    """Returns what an average is at some points of a run.

    Args:
        schedule: Gives the momentum of each update.
        points: Numbers of updates made, each at least 1.
        start: Number of updates at the start of the run whose weight is told. Defaults to 1, the copy.

    Returns:
        The figures, in ascending order of the points, each once.

    Raises:
        ValueError: If a point is below 1 or above :data:`MOST_UPDATES`.

    Example:
        >>> for point in figures(Ramp(momentum=0.0001, gamma=2000), [2_000, 277_000]):
        ...     print(round(point.mean_age, 1), round(point.effective_size, 1))
        1.7 4.4
        9999.0 19999.0
    """
    wanted = set(points)
    if min(wanted) < 1 or max(wanted) > MOST_UPDATES:
        raise ValueError(f'a run has 1 to {MOST_UPDATES:,} updates, but got {min(wanted):,} to {max(wanted):,}')
    found = []
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
            spread = math.sqrt(max(square - age * age, 0.0))
            found.append(
                Figures(step + 1, momentum, schedule.interval / momentum, age, spread, 1 / norm, weight))
    return found


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
