"""What a checkpoint says about its average besides the weights: which schedules made it, and how old it is."""

import math
from contextlib import suppress
from typing import Any, Optional

from mmengine.model import BaseAveragedModel

from mmyolo_ema.checkpoint import listed
from mmyolo_ema.checkpoint.stored_schedule import about_averages, stored_age, stored_segments
from mmyolo_ema.ema_config import stored_hook
from mmyolo_ema.hooks.shared_tensors import averages_by_name
from mmyolo_ema.models import ExpMomentumEMA, schedule_of
from mmyolo_ema.models.tensor_references import tensor_references
from mmyolo_ema.schedules import aged
from mmyolo_ema.schedules.history import Segments, as_data, continued


class AverageRecord:
    """Follows the schedules and the mean age of an average, also through resumes with another schedule.

    Args:
        ema_model: The average.

    Raises:
        TypeError: If its schedule is not equal to itself, asked twice.
    """

    def __init__(self, ema_model: BaseAveragedModel) -> None:
        self._ema_model = ema_model
        self.schedule = schedule_of(ema_model)
        if self.schedule != schedule_of(ema_model):
            raise TypeError(
                f'the schedule of {type(ema_model).__name__} must be a frozen dataclass, so that it can be '
                f'compared: {type(self.schedule).__name__}'
            )
        self._segments: Segments = ((0, self.schedule),)
        self._age: Optional[float] = 0.0
        self._counted = 0
        # Names that were copied at first, and the update from which they are averaged.
        self._averaged_from: dict[str, int] = {}

    def go_on(self, meta: dict[str, Any], updates: int) -> str:
        """Goes on from the average of a checkpoint.

        Args:
            meta: What the checkpoint says about itself.
            updates: How many updates its average has had.

        Returns:
            What there is to say about it, or nothing.
        """
        past: Segments = ((0, None),)
        about = about_averages(meta)
        with suppress(ValueError):
            past = stored_segments(meta)
            if hook := stored_hook(meta):  # where MMEngine's hook says it
                about = dict(dict(update_buffers=hook.get('update_buffers', False)), **about)
        self._segments = continued(past, updates, self.schedule)
        self._age, self._counted = stored_age(meta, updates), updates
        selection = self._changed_selection(about, updates) if updates else ''
        if self._age is None:
            return f'; the file does not tell which schedule made it, so its mean age is not known{selection}'
        if len(self._segments) == 1 or self._segments[-1][0] != updates:
            return selection
        before = self._segments[-2][1] or 'another'
        return f'; its schedule was {before} and is {self.schedule} from here on{selection}'

    def _changed_selection(self, about: dict[str, Any], updates: int) -> str:
        """Notes which weights are averaged now and were not in a checkpoint, and the other way round; in words too."""
        stored, since = about.get('excluded'), about.get('averaged_from')
        update_buffers = self._ema_model.update_buffers
        own = {*self._excluded(), *self._copied_buffers(update_buffers)}
        before = {
            *map(str, stored if isinstance(stored, list) else ()),
            *self._copied_buffers(about.get('update_buffers', update_buffers)),
        }
        since = {**(since if isinstance(since, dict) else {}), **dict.fromkeys(sorted(before), updates)}
        self._averaged_from = {name: first for name, first in since.items() if name not in own}
        return listed('; averaged from here on: ', sorted(before - own)) + listed(
            '; not averaged from here on: ', sorted(own - before)
        )

    def _excluded(self) -> list[str]:
        average = self._ema_model
        return average.selection.excluded(average.module) if isinstance(average, ExpMomentumEMA) else []

    def _copied_buffers(self, update_buffers: bool) -> list[str]:
        """Returns the buffers that would be averaged with ``update_buffers``, and are copied without it."""
        return [
            name
            for name, reference in tensor_references(self._ema_model.module)
            if not (update_buffers or reference.is_parameter or reference.is_of_quantizer)
            and reference.is_persistent
            and reference.tensor.is_floating_point()
        ]

    def follow(self) -> None:
        """Notes the schedule of the next update, which somebody may have changed."""
        schedule = schedule_of(self._ema_model)
        if schedule != self.schedule:
            self.mean_age()
            self._segments = continued(self._segments, int(self._ema_model.steps), schedule)
            self.schedule = schedule

    def momentum(self) -> float:
        """Returns the weight of the source in the last update, NaN if it is not known."""
        return math.nan if self.schedule is None else self.schedule(int(self._ema_model.steps) - 1)

    def mean_age(self) -> Optional[float]:
        """Returns the mean age of the average in updates, None if it is not known."""
        updates = int(self._ema_model.steps)
        if self.schedule is None and updates > max(self._counted, 1):
            self._age = None
        for step in range(self._counted, updates):
            if self._age is not None and self.schedule is not None:
                self._age = aged(self._age, step, self.schedule(step))
        self._counted = updates
        return self._age

    def as_meta(self) -> dict[str, Any]:
        """Returns plain data for ``meta['mmyolo_ema']`` of a checkpoint."""
        average, updates = self._ema_model, int(self._ema_model.steps)
        excluded = self._excluded()
        return dict(
            updates=updates,
            mean_age=self.mean_age(),
            schedule=as_data(self._segments, updates),
            update_buffers=average.update_buffers,
            averages_by_name=averages_by_name(average),
            **(dict(excluded=excluded) if excluded else {}),
            **(dict(averaged_from=self._averaged_from) if self._averaged_from else {}),
        )
