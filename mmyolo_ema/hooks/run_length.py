"""How long a run is for its average, and whether that is enough for its schedule."""

import math

from mmengine.hooks import EMAHook
from mmengine.runner import Runner

from mmyolo_ema.schedule import USUAL_AGES, mean_age, suited

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
    elif still_ramps and age < youngest * updates:
        meaning = 'they will be nearly the raw ones'
    else:
        return ''
    better_momentum, better_gamma = suited(updates)
    return (f'this run of {updates:,} updates is too short for momentum={momentum:g} and gamma={gamma:g}: at its end '
            f'the averaged weights will be {_rounded(age)} updates old ({age / updates:.2%} of the run), so {meaning}. '
            f'momentum={better_momentum:.2g} and gamma={better_gamma:.0f} would make them 4 % of the run old.')


def _rounded(age: float) -> str:
    return f'{age:.1f}' if age >= 1 else f'{age:.2g}'
