"""What a checkpoint says about its average besides the weights: which schedules made it, and how old it is."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Optional

import torch
from mmengine.model import BaseAveragedModel

from mmyolo_ema.ema_config import schedule_of
from mmyolo_ema.schedule import Schedule, aged
from mmyolo_ema.schedule_history import Segments, as_data, continued, stored_age, stored_segments

__all__ = ['AverageRecord', 'momentum_of']


def momentum_of(ema_model: BaseAveragedModel) -> Callable[[int], float]:
    """Returns the function that gives the weight of the source in an update, by the number of updates before it.

    A class without ``momentum_at`` is asked what its ``avg_func`` makes of 0 if the source is 1.
    """

    def probed(step: int) -> float:
        averaged, source = torch.zeros(2, dtype=torch.float64)
        source.fill_(1)
        # Some look at the argument, some at their own count.
        count = ema_model.steps.clone()
        ema_model.steps.fill_(step)
        try:
            ema_model.avg_func(averaged, source, ema_model.steps)
        finally:
            ema_model.steps.copy_(count)
        return float(averaged)

    later = getattr(ema_model, 'momentum_at', probed)
    return lambda step: later(step) if step else 1.0


class AverageRecord:
    """Follows the schedules and the mean age of an average, also through resumes with another schedule.

    Args:
        ema_model: The average.
        options: The options of its class, as in a config, and its ``type``.
    """

    def __init__(self, ema_model: BaseAveragedModel, options: dict[str, Any]) -> None:
        self._ema_model = ema_model
        self._momentum_of = momentum_of(ema_model)
        self._schedule: Optional[Schedule] = None
        with suppress(ValueError):  # a class of the user's own
            self._schedule = schedule_of(dict(options, ema_type=options['type']))
        self._segments: Segments = ((0, self._schedule),)
        self._age: Optional[float] = 0.0
        self._counted = 0

    def go_on(self, meta: dict, updates: int) -> str:
        """Goes on from the average of a checkpoint.

        Args:
            meta: What the checkpoint says about itself.
            updates: How many updates its average has had.

        Returns:
            What there is to say about it, or nothing.
        """
        past: Segments = ((0, None),)
        with suppress(ValueError):
            past = stored_segments(meta)
        self._segments = continued(past, updates, self._schedule)
        self._age, self._counted = stored_age(meta, updates), updates
        if self._age is None:
            return '; the file does not tell which schedule made it, so its mean age is not known'
        if len(self._segments) == 1 or self._segments[-1][0] != updates:
            return ''
        return f'; its schedule was {self._segments[-2][1] or "another"} and is {self._schedule} from here on'

    def mean_age(self) -> Optional[float]:
        """Returns the mean age of the average in updates, None if it is not known."""
        updates, interval = int(self._ema_model.steps), getattr(self._ema_model, 'interval', 1)
        for step in range(self._counted, updates):
            if self._age is not None:
                self._age = aged(self._age, step, self._momentum_of(step), interval)
        self._counted = updates
        return self._age

    def as_meta(self) -> dict[str, Any]:
        """Returns plain data for ``meta['mmyolo_ema']`` of a checkpoint."""
        return dict(updates=int(self._ema_model.steps), mean_age=self.mean_age(), schedule=as_data(self._segments))
