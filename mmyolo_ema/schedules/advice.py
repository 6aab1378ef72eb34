"""Which schedule suits a run, and the one rule by which hook and tools say that another does not."""

import math
from typing import Optional, Union

from mmyolo_ema.schedules.figures import MOST_UPDATES, Figures, figures, mean_age
from mmyolo_ema.schedules.lengths import in_updates
from mmyolo_ema.schedules.momenta import Ramp, Schedule

#: Mean ages, as shares of the run, between which averages have been found useful: from Ajroldi et al., ICML 2025, to
#: Karras et al., "Analyzing and Improving the Training Dynamics of Diffusion Models", 2023.
USUAL_AGES = (0.01, 0.2)

#: The mean age that is suggested where none is asked for, as a share of the run: that of the long COCO recipes.
SUITED_SHARE = 0.04

# Mean ages, in updates, below and above which an average is short or long whatever the run.
_FEW, _MANY = 5, 1000


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
        interval: As in :func:`mmyolo_ema.schedules.mean_age`. Defaults to 1.

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
    raise ValueError(
        f'no momentum makes the average {age:g} updates old at the end of a run of {updates:,} updates'
        + (f' with interval={interval}' if interval != 1 else '')
    )


def suggested(updates: int, interval: int = 1) -> tuple[float, float]:
    """Returns the momentum and gamma that hook and tools suggest for a run: :data:`SUITED_SHARE` of it old at its end.

    Args:
        updates: Number of updates in the run, at least 1.
        interval: As in :func:`mmyolo_ema.schedules.mean_age`. Defaults to 1.

    Raises:
        ValueError: If no momentum makes the average so old in a run of this length.

    Example:
        >>> suggested(480)
        (0.0495, 39.9)
    """
    momentum, gamma = of_age(updates, SUITED_SHARE * updates, interval)
    return three_digits(momentum), three_digits(gamma)


def ramp_of_age(
    age: Union[int, float, str], updates: int, updates_per_epoch: Optional[float] = None, interval: int = 1
) -> Ramp:
    """Returns the schedule whose average has a mean age at the end of a run, with three significant digits.

    Args:
        age: The mean age as :func:`mmyolo_ema.schedules.in_updates` reads it: ``'4%'`` of the run, ``'2epochs'``, or
            ``500`` updates.
        updates: Number of updates in the run, at least 1. One update copies, whatever the schedule.
        updates_per_epoch: Number of updates in an epoch, None if it is not known. Defaults to None.
        interval: As in :func:`mmyolo_ema.schedules.mean_age`. Defaults to 1.

    Raises:
        ValueError: If the age is of another form, or no momentum makes the average so old, or so young.

    Example:
        >>> ramp_of_age('4%', updates=480)
        Ramp(momentum=0.0495, gamma=39.9, interval=1)
    """
    wanted = in_updates(str(age), updates, updates_per_epoch)
    momentum, gamma = of_age(updates, wanted, interval) if updates > 1 else suited(updates)
    if three_digits(momentum) >= 1:
        raise ValueError(f'an average of a mean age of {rounded(wanted)} updates equals the model')
    return Ramp(three_digits(momentum), three_digits(gamma), interval)


def three_digits(number: float) -> float:
    """Returns a number with the three significant digits in which momentum and gamma are suggested.

    Example:
        >>> three_digits(0.0123456), three_digits(1234.5)
        (0.0123, 1230.0)
    """
    return float(f'{number:.3g}')


def instead_of_decay(decay: object) -> str:
    """Returns what to write for an average that other packages name by its decay.

    Example:
        >>> instead_of_decay(0.9998)
        'momentum is 1 - decay: write momentum=0.0002'
    """
    instead = f'momentum={three_digits(1 - decay):.12g}' if isinstance(decay, (int, float)) else 'that'
    return f'momentum is 1 - decay: write {instead}'


def rounded(number: float) -> str:
    """Returns a number with about three significant digits, a large one with separators: as ages are written.

    Example:
        >>> rounded(1.7049), rounded(12345.6)
        ('1.7', '12,346')
    """
    return f'{number:,.0f}' if number >= 100 else f'{number:.3g}'


def is_nearly_raw(updates: int, age: float) -> bool:
    """Whether an average of a mean age is nearly the newest weights, for a run of a length.

    It is if its age is below what has been found useful and it holds a few updates only, or if it is far below and not
    long in itself.

    Example:
        >>> is_nearly_raw(100_000, age=1.0), is_nearly_raw(100_000, age=4999.0)
        (True, False)
    """
    return age < USUAL_AGES[0] * updates and (age < _FEW or age < min(USUAL_AGES[0] / 5 * updates, _MANY))


def is_raw(schedule: Schedule, at: Figures) -> bool:
    """Whether an average is nearly the newest weights at a point of a run.

    It is by its age alone (:func:`is_nearly_raw`), or if it is younger than has been found useful because its momentum
    has not come down yet: it is more than twice what it ends at.

    Args:
        schedule: What made it.
        at: What it is there.
    """
    still_ramps = at.momentum > 2 * getattr(schedule, 'momentum', at.momentum)
    return is_nearly_raw(at.updates, at.mean_age) or (still_ramps and at.mean_age < USUAL_AGES[0] * at.updates)


def advice(schedule: Schedule, updates: int) -> str:
    """Returns what is wrong with a schedule for a run and what would be right, or nothing.

    Args:
        schedule: The momentum of each update.
        updates: Number of updates in the whole run, at least 1.

    Example:
        >>> advice(Ramp(momentum=0.0002, gamma=2000), 100_000)
        ''
    """
    if updates > MOST_UPDATES:
        return ''
    (at_end,) = figures(schedule, [updates])
    age = at_end.mean_age
    if age > USUAL_AGES[1] * updates:
        meaning = 'they will be mostly those of its beginning'
    elif is_raw(schedule, at_end):
        meaning = 'they will be nearly the raw ones'
    else:
        return ''
    problem = (
        f'{_in_words(schedule)} not suit this run of {updates:,} updates: at its end the averaged weights will '
        f'be {rounded(age)} updates old ({age / updates:.2%} of the run), so {meaning}.'
    )
    return problem + _remedy(schedule, updates)


def _remedy(schedule: Schedule, updates: int) -> str:
    """Returns what would suit a run."""
    try:
        momentum, gamma = suggested(updates, schedule.interval)
    except ValueError:  # the run is too short for any
        return ''
    present = getattr(schedule, 'momentum', 0.0)
    decay = ''
    if present > max(momentum, 0.5):
        decay = f' It looks like a decay: momentum is 1 - decay, here {three_digits(1 - present):.12g}.'
    ramp = '' if isinstance(schedule, Ramp) else "ema_type='mmyolo_ema.ExpMomentumEMA', "
    return (
        f'{decay} {ramp}momentum={momentum:.12g} and gamma={gamma:.12g} would make them {SUITED_SHARE:.0%} of the '
        'run old.'
    )


def _in_words(schedule: Schedule) -> str:
    """Returns the subject and the verb of a sentence about a schedule."""
    options = [f'{name}={vars(schedule)[name]:g}' for name in ('momentum', 'gamma') if name in vars(schedule)]
    return f'{" and ".join(options) or schedule} {"do" if len(options) > 1 else "does"}'


def rescaled(momentum: float, gamma: float, factor: float) -> tuple[float, float]:
    """Returns the momentum and gamma that average over as many images when an update stands for more of them.

    ``1 - momentum`` becomes ``(1 - momentum) ** factor`` and gamma ``gamma / factor``: the scaling rule of Busbridge
    et al., "How to Scale Your EMA", NeurIPS 2023.

    Args:
        momentum: As in :func:`mmyolo_ema.schedules.momentum_at`.
        gamma: As in :func:`mmyolo_ema.schedules.momentum_at`.
        factor: The new number of images in an update over the old one, above 0.

    Example:
        >>> momentum, gamma = rescaled(0.0002, 2000, factor=1 / 8)
        >>> round(momentum, 6), gamma
        (2.5e-05, 16000.0)
    """
    return -math.expm1(factor * math.log1p(-momentum)), gamma / factor
