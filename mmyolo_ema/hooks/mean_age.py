"""The schedule that a mean age asks for in a run: chosen from the run's length, or kept from a checkpoint."""

from contextlib import suppress
from typing import Any, Optional, Union

from mmengine.hooks import EMAHook
from mmengine.model import BaseAveragedModel
from mmengine.runner import Runner

from mmyolo_ema.checkpoint.stored_schedule import stored_segments
from mmyolo_ema.ema_options import check_mean_age_alone
from mmyolo_ema.hooks.optimizer_steps import accumulative_counts
from mmyolo_ema.hooks.run_length import updates_of_run, updates_per_epoch
from mmyolo_ema.models import schedule_of
from mmyolo_ema.schedules import Ramp, in_updates, ramp_of_age


class MeanAge:
    """A mean age that is wished for, and what comes of it.

    Args:
        wish: As :func:`mmyolo_ema.schedules.in_updates` reads it.
        options: Options of the average, as in a config.

    Raises:
        ValueError: If the wish is of another form, or momentum or gamma are given too.
    """

    def __init__(self, wish: Union[int, float, str], options: dict[str, Any]) -> None:
        check_mean_age_alone(wish, options)
        self._wish = wish
        # A form that is wrong in any run is told at once.
        self._named(lambda: in_updates(str(wish), updates=1, updates_per_epoch=1))
        self._kept: Optional[Ramp] = None
        self._told = ''

    def choose(self, runner: Runner, hook: EMAHook, average: BaseAveragedModel) -> dict[str, float]:
        """Gives an average the schedule that suits the run, unless it keeps that of a checkpoint.

        Args:
            runner: The runner of the training.
            hook: The hook of the average.
            average: The average, before its first update or after it was loaded.

        Returns:
            Its momentum and gamma.

        Raises:
            ValueError: If no schedule does it, or the average has another one than a ramp.
        """
        iterations = accumulative_counts(runner.optim_wrapper)
        updates, per_epoch = updates_of_run(runner, hook, iterations), updates_per_epoch(runner, iterations)
        chosen = self._named(lambda: ramp_of_age(self._wish, max(updates, 1), per_epoch, average.interval))
        self._give(average, self._kept or chosen)
        self._told = f'mean_age={self._wish} of {updates:,} updates: {_numbers(chosen)}'
        if self._kept is not None and self._kept != chosen:
            self._told = (
                f'the schedule of the checkpoint goes on, {_numbers(self._kept)}; mean_age={self._wish} of '
                f'{updates:,} updates would be {_numbers(chosen)}'
            )
        return dict(momentum=average.momentum, gamma=average.gamma)

    def keep(self, average: BaseAveragedModel, meta: dict[str, Any]) -> None:
        """Gives an average the schedule that made that of a checkpoint, if the file tells it and it is a ramp.

        Args:
            average: The average.
            meta: What the checkpoint says about itself; empty for an average that starts anew.
        """
        schedule = None
        with suppress(ValueError):
            schedule = stored_segments(meta)[-1][1]
        self._kept = schedule if isinstance(schedule, Ramp) and schedule.interval == average.interval else None
        if self._kept is not None:
            self._give(average, self._kept)

    def settle(self, average: BaseAveragedModel) -> str:
        """Keeps the schedule that an average has: its run begins. Returns in words what was chosen or kept."""
        self._kept = Ramp(average.momentum, average.gamma, average.interval)
        return self._told

    def _give(self, average: BaseAveragedModel, ramp: Ramp) -> None:
        average.momentum, average.gamma = ramp.momentum, ramp.gamma
        if schedule_of(average) != ramp:
            raise ValueError(
                f'mean_age={self._wish!r} needs an average whose momentum ramps, such as ema_type='
                f"'mmyolo_ema.ExpMomentumEMA', but got {type(average).__name__}"
            )

    def _named(self, work: Any) -> Any:
        try:
            return work()
        except ValueError as error:
            raise ValueError(f'mean_age={self._wish!r} of the EMAHook: {error}') from error


def _numbers(ramp: Ramp) -> str:
    return f'momentum={ramp.momentum:.12g}, gamma={ramp.gamma:.12g}'
