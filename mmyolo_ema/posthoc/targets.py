"""The averages that can be asked for, as users write them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Optional

from scipy.optimize import brentq

from mmyolo_ema.schedules import Power, Ramp, Restarted, Schedule, Uniform, in_updates
from mmyolo_ema.schedules.history import latest

#: From an eighth of a horizon to eight times, by twos.
FACTORS = tuple(2.0**power for power in range(-3, 4) if power)


class Target(NamedTuple):
    """An average that is wanted, and what the user called it."""

    name: str
    schedule: Schedule


def target(text: str, like: Schedule, updates: int, updates_per_epoch: Optional[float] = None) -> Target:
    """Returns the schedule of an average that is wanted.

    Args:
        text: A horizon, in the form that :func:`mmyolo_ema.schedules.in_updates` reads: the run's schedule with the
            momentum ``1 / horizon``. Or ``last:LENGTH``, the plain mean of the last updates; ``power:DEVIATION``, the
            power function whose age has this standard deviation, as a share of the run.
        like: The run's schedule, whose ramp and interval are kept: the last if it was changed.
        updates: Number of updates in the run.
        updates_per_epoch: Number of updates in an epoch, None if it is not known. Defaults to None.

    Raises:
        ValueError: If the text is of another form, or longer than the run.

    Example:
        >>> target('2epochs', Ramp(momentum=0.05, gamma=40), updates=480, updates_per_epoch=20).schedule
        Ramp(momentum=0.025, gamma=40, interval=1)
        >>> target('last:10%', Ramp(), updates=480).schedule
        Restarted(schedule=Uniform(interval=1), start=432)
    """
    kind, _, length = text.rpartition(':')
    if kind == 'power':
        return Target(text, Power(_exponent(text, length)))
    horizon = in_updates(length, updates, updates_per_epoch)
    if kind == 'last':
        count = round(horizon)
        if not 1 <= count <= updates:
            raise ValueError(f'{text!r} is not within the run of {updates:,} updates')
        return Target(text, Restarted(Uniform(), updates - count))
    if kind:
        raise ValueError(f'{text!r} is none of a horizon, last:LENGTH and power:DEVIATION')
    if horizon <= 1:
        raise ValueError(f'a horizon of {text!r} is the raw weights: it must be above 1 update')
    ramp: Any = latest(like) if hasattr(latest(like), 'momentum') else Ramp()
    return Target(text, replace(ramp, momentum=1 / horizon))


def horizons_around(schedule: Schedule, factors: Sequence[float] = FACTORS) -> list[str]:
    """Returns horizons around that of a schedule, as :func:`target` reads them; none if it has no horizon.

    Example:
        >>> horizons_around(Ramp(momentum=0.25), (0.25, 0.5, 2))
        ['2', '8']
    """
    momentum = getattr(latest(schedule), 'momentum', None)
    wanted = [] if momentum is None else [factor / momentum for factor in factors]
    return [f'{float(f"{horizon:.4g}"):.15g}' for horizon in wanted if horizon > 1]


def _exponent(text: str, deviation: str) -> float:
    """Returns the exponent g of a power function whose age has a standard deviation, as a share of the run."""
    try:
        wanted = float(deviation)
    except ValueError:
        wanted = 0.0
    # A plain mean has the largest.
    if not 1e-4 <= wanted <= 12**-0.5:
        raise ValueError(f'{text!r}: the standard deviation of the age is 0.0001 to {12**-0.5:.4f} of the run')
    return brentq(lambda g: ((g + 1) / ((g + 2) ** 2 * (g + 3))) ** 0.5 - wanted, 0, 1 / wanted)
