"""How long a run is for its average."""

from typing import Optional, Union

from mmengine.hooks import EMAHook
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmyolo_ema.schedules import in_updates


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


def updates_per_epoch(runner: Runner, iterations: int) -> Optional[float]:
    """Returns how many updates an epoch makes, None for a run that counts iterations."""
    return len(runner.train_dataloader) / iterations if isinstance(runner.train_loop, EpochBasedTrainLoop) else None


def length_of(option: str, value: Union[int, float, str], runner: Runner, hook: EMAHook, iterations: int) -> float:
    """Returns how many updates the length is that an option of the SnapshotHook names.

    Raises:
        ValueError: If it is of another form.
    """
    try:
        return in_updates(str(value), updates_of_run(runner, hook, iterations), updates_per_epoch(runner, iterations))
    except ValueError as error:
        raise ValueError(f'{option}={value!r} of the SnapshotHook: {error}') from error


def _begin(runner: Runner, hook: EMAHook) -> int:
    """Returns how many iterations come before the average begins."""
    return (hook.begin_epoch - 1) * len(runner.train_dataloader) if hook.enabled_by_epoch else hook.begin_iter - 1
