"""The momentum of each update of an average, as objects.

The one place that knows the formulas. A step is one call of the average's update. Step 0 copies the source, so its
momentum is 1; at a later step t the averaged weights become ``(1 - momentum_t) * averaged + momentum_t * source``. So
after T steps the average is ``sum_t w(t) * source_t`` with ``w(t) = momentum_t * prod_(s > t) (1 - momentum_s)``, and
the weights sum to 1.
"""

import math
from dataclasses import dataclass


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


class Schedule:
    """The weight of the source in each update of an average.

    Called with the number of updates before this one: 1 at step 0, and 0 at steps that are no multiple of ``interval``.
    A schedule of your own is a frozen dataclass that derives from this class and has :meth:`momentum_at`.

    Attributes:
        interval: The average moves only at steps that are a multiple of it.

    Example:
        >>> @dataclass(frozen=True)
        ... class Halving(Schedule):
        ...     length: int
        ...     interval: int = 1
        ...     def momentum_at(self, step):
        ...         return 0.5**(1 + step / self.length)
        >>> [Halving(length=10)(step) for step in (0, 10, 20)]
        [1.0, 0.25, 0.125]
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
        return 1 - (step / (step + self.interval)) ** (self.exponent + 1)


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
        return 1 - (1 - self.schedule(step)) ** self.times


@dataclass(frozen=True)
class Segmented(Schedule):
    """Schedules that followed each other.

    Attributes:
        segments: The first update and the schedule of each, from update 0 on.
    """

    segments: tuple[tuple[int, Schedule], ...]

    @property
    def interval(self) -> int:  # type: ignore[override]
        return self.segments[-1][1].interval

    def __call__(self, step: int) -> float:
        return next(schedule for first, schedule in reversed(self.segments) if first <= step)(step)

    def __str__(self) -> str:
        ends = [f' to update {first}, then ' for first, _ in self.segments[1:]] + ['']
        return ''.join(f'{schedule}{end}' for (_, schedule), end in zip(self.segments, ends))


@dataclass(frozen=True)
class Recorded(Schedule):
    """The momenta of the updates that were made: what a file says of a schedule that only its own class can compute.

    Attributes:
        momenta: One for each update; 0 where the average did not move.
    """

    momenta: tuple[float, ...]
    interval: int = 1

    def __call__(self, step: int) -> float:
        if step >= len(self.momenta):
            raise ValueError(
                f'the momenta of {len(self.momenta):,} updates are known, but that of update {step + 1:,} was asked for'
            )
        return self.momenta[step]

    def __str__(self) -> str:
        return f'a schedule of which {len(self.momenta):,} momenta are recorded'
