"""An average that a run keeps: its weights, the schedule that was wished for, and the record of what made them."""

from collections.abc import Collection
from contextlib import ExitStack
from typing import Any, Union

from mmengine.hooks import EMAHook
from mmengine.model import BaseAveragedModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from mmyolo_ema._upstream import has_training_loop
from mmyolo_ema.checkpoint.weights import further_averages, origin
from mmyolo_ema.ema_options import check_options
from mmyolo_ema.hooks.average_record import AverageRecord
from mmyolo_ema.hooks.horizon import Horizon
from mmyolo_ema.hooks.kept_buffers import unchanged
from mmyolo_ema.hooks.mean_age import MeanAge
from mmyolo_ema.models.exp_momentum_ema import update_together

#: The name of the average that stands for the model; the further ones have names that the config gives them.
MAIN = 'ema'


class KeptAverage:
    """An average of a run.

    Args:
        name: 'ema' for the main one, or the name of a further one.
        ema_cfg: Class and options of the average. It gets the momentum and gamma that the mean age asks for.
        mean_age: The mean age that is wished for, the horizon in its place, or None.

    Attributes:
        average (BaseAveragedModel): The average, once it is made.
        record (AverageRecord): What made it.

    Raises:
        ValueError: If the mean age is of another form, or momentum or gamma are given too.
    """

    average: BaseAveragedModel
    record: AverageRecord

    def __init__(self, name: str, ema_cfg: dict[str, Any], mean_age: Union[int, float, str, Horizon, None]) -> None:
        self.name, self.ema_cfg = name, ema_cfg
        self.mean_age = mean_age if mean_age is None or isinstance(mean_age, Horizon) else MeanAge(mean_age, ema_cfg)

    def make(self, model: nn.Module) -> None:
        """Makes the average of a bare model for a run that starts anew."""
        try:
            self.average = MODELS.build(self.ema_cfg, default_args=dict(model=model))
        except TypeError:
            # What the hook does not know goes to the average, which says less about it.
            check_options(dict(self.ema_cfg, type='mmyolo_ema.EMAHook', ema_type=self.ema_cfg['type']))
            raise
        self.record = AverageRecord(self.average)
        if self.mean_age is not None:
            self.mean_age.keep(self.average, {})

    def choose_schedule(self, runner: Runner, hook: EMAHook) -> None:
        """Gives the average the schedule that its mean age asks for; the length of a run is known with its loop."""
        if self.mean_age is not None and has_training_loop(runner):
            self.ema_cfg.update(self.mean_age.choose(runner, hook, self.average))
            self.record.follow()

    def go_on(self, runner: Runner, hook: EMAHook, checkpoint: dict[str, Any], resumes: bool) -> str:
        """Goes on with the schedule and the record of a checkpoint whose weights the average has.

        Args:
            runner: The runner that loads.
            hook: The hook of the average.
            checkpoint: What was loaded.
            resumes: Whether the averages of the file go on.

        Returns:
            What there is to say about it, or nothing.
        """
        meta, is_main, updates = checkpoint.get('meta') or {}, self.name == MAIN, int(self.average.steps)
        is_stored = resumes and (is_main or self.name in further_averages(checkpoint))
        if is_stored and not is_main:
            meta = dict(mmyolo_ema=origin(checkpoint, self.name))
        if self.mean_age is not None:
            self.mean_age.keep(self.average, meta if is_stored else {})
        self.choose_schedule(runner, hook)
        self.record = AverageRecord(self.average)
        remark = self.record.go_on(meta, updates)
        if is_main:
            return remark
        if is_stored:
            return remark.replace('; ', f'; the average {self.name!r}: ', 1)
        return f'; the average {self.name!r} is new and starts as a copy of it' if resumes and updates else ''


def update(averages: Collection[KeptAverage], model: nn.Module, kept_buffers: list[str]) -> None:
    """Moves averages towards a model, but for some buffers."""
    with ExitStack() as stack:
        for kept in averages:
            kept.record.follow()
            stack.enter_context(unchanged(kept.average.module, kept_buffers))
        update_together([kept.average for kept in averages], model)
