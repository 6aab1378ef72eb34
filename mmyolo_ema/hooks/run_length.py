"""How long a run is for its average, and whether that is enough for its schedule."""

import math

from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from mmyolo_ema.schedule import SUITED_SHARE, USUAL_AGES, is_nearly_raw, mean_age, suggested, three_digits

__all__ = ['advice', 'updates_at_end', 'updates_of_run']


def updates_at_end(runner: Runner, hook: EMAHook, iterations: int) -> int:
    """Returns how many updates an average will have had at the end of a run, if no step is skipped.

    Args:
        runner: The runner of the training.
        hook: The hook of the average.
        iterations: How many of them an update takes.
    """
    left = max(runner.max_iters - max(runner.iter, _begin(runner, hook)), 0)
    return int(hook.ema_model.steps) + -(-left // iterations)


def updates_of_run(runner: Runner, hook: EMAHook, iterations: int) -> int:
    """Returns how many updates a whole run makes, as :func:`updates_at_end`, however much of it was done before."""
    return -(-max(runner.max_iters - max(_begin(runner, hook), 0), 0) // iterations)


def _begin(runner: Runner, hook: EMAHook) -> int:
    """Returns how many iterations come before the average begins."""
    return (hook.begin_epoch - 1) * len(runner.train_dataloader) if hook.enabled_by_epoch else hook.begin_iter - 1


def advice(updates: int, momentum: float, gamma: float, interval: int) -> str:
    """Returns what is wrong with a schedule for a run of this length and what would be right, or nothing.

    Args:
        updates: Number of updates in the whole run.
        momentum: As for :func:`mmyolo_ema.schedule.momentum_at`.
        gamma: As for :func:`mmyolo_ema.schedule.momentum_at`.
        interval: As for :func:`mmyolo_ema.schedule.mean_age`.

    Example:
        >>> advice(100_000, momentum=0.0002, gamma=2000, interval=1)
        ''
    """
    age = mean_age(updates, momentum, gamma, interval)
    still_ramps = updates < gamma * math.log(1 / momentum)
    youngest, oldest = USUAL_AGES
    if age > oldest * updates:
        meaning = 'they will be mostly those of its beginning'
    elif is_nearly_raw(updates, age) or (still_ramps and age < youngest * updates):
        meaning = 'they will be nearly the raw ones'
    else:
        return ''
    said = (f'momentum={momentum:g} and gamma={gamma:g} do not suit this run of {updates:,} updates: at its end the '
            f'averaged weights will be {_rounded(age)} updates old ({age / updates:.2%} of the run), so {meaning}.')
    try:
        better_momentum, better_gamma = suggested(updates, interval)
    except ValueError:  # the run is too short for any
        return said
    if momentum > max(better_momentum, 0.5):
        said += f' It looks like a decay; momentum is 1 - decay: write {three_digits(1 - momentum):.12g}.'
    return said + (f' momentum={better_momentum:.12g} and gamma={better_gamma:.12g} would make them {SUITED_SHARE:.0%} '
                   'of the run old.')


def _rounded(age: float) -> str:
    return f'{age:.1f}' if age >= 1 else f'{age:.2g}'
