"""The schedule of a further average that differs from the main one's in the horizon."""

from typing import Any, Union

from mmengine.hooks import EMAHook
from mmengine.model import BaseAveragedModel
from mmengine.runner import Runner

from mmyolo_ema.hooks.optimizer_steps import accumulative_counts
from mmyolo_ema.hooks.run_length import length_of
from mmyolo_ema.models import schedule_of


class Horizon:
    """The ``second_horizon`` of a SnapshotHook: called as :class:`mmyolo_ema.hooks.mean_age.MeanAge` is."""

    def __init__(self, horizon: Union[int, float, str]) -> None:
        self._horizon = horizon

    def choose(self, runner: Runner, hook: EMAHook, average: BaseAveragedModel) -> dict[str, float]:
        """Gives an average the main one's schedule with this horizon, and returns its numbers.

        Raises:
            ValueError: If the horizon is of another form, or no average of the class has it.
        """
        iterations, main = accumulative_counts(runner.optim_wrapper), hook.ema_model
        horizon = length_of('second_horizon', self._horizon, runner, hook, iterations)
        if not hasattr(main, 'momentum') or horizon <= 1 or horizon == 1 / main.momentum:
            raise ValueError(
                f'second_horizon={self._horizon!r} is {horizon:g} updates beside an average with the '
                f'schedule {schedule_of(main)}: it needs one with a momentum, and another horizon above 1'
            )
        average.momentum = 1 / horizon
        if hasattr(main, 'gamma'):
            average.gamma = main.gamma
        return dict(momentum=average.momentum)

    def keep(self, average: BaseAveragedModel, meta: dict[str, Any]) -> None:
        """Keeps nothing of a checkpoint: the main average's schedule is followed."""

    def settle(self, average: BaseAveragedModel) -> str:
        """Returns in words what was chosen."""
        return f'second_horizon={self._horizon}: momentum={average.momentum:.12g}'
