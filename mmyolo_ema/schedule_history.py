"""The schedules that made an average one after the other, and how a checkpoint says so.

A run may be resumed with another momentum. So a checkpoint of this package has a list of segments in
``meta['mmyolo_ema']['schedule']``: ``[[first update, options of the average], ...]``, or None for options that are not
known. For other files the config in them tells the only schedule.
"""

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Optional

from mmyolo_ema.ema_config import name_of, schedule_of, stored_hook
from mmyolo_ema.schedule import Schedule, figures

__all__ = ['Segmented', 'Segments', 'as_data', 'continued', 'latest', 'schedule_from', 'stored_age',
           'stored_segments', 'until', 'with_momentum']

#: First update and schedule of each segment; None for a schedule that is not known.
Segments = tuple[tuple[int, Optional[Schedule]], ...]

# Nobody resumes more often; each takes time in each update that is gone through.
_MOST_SEGMENTS = 1000


@dataclass(frozen=True)
class Segmented(Schedule):
    """Schedules that followed each other.

    Attributes:
        segments: The first update and the schedule of each, from update 0 on.
    """

    segments: tuple[tuple[int, Schedule], ...]

    @property
    def interval(self) -> int:  # type: ignore[override]
        return latest(self).interval

    def __call__(self, step: int) -> float:
        return next(schedule for first, schedule in reversed(self.segments) if first <= step)(step)

    def __str__(self) -> str:
        ends = [f' to update {first}, then ' for first, _ in self.segments[1:]] + ['']
        return ''.join(f'{schedule}{end}' for (_, schedule), end in zip(self.segments, ends))


def latest(schedule: Schedule) -> Schedule:
    """Returns the last of schedules that followed each other."""
    return schedule.segments[-1][1] if isinstance(schedule, Segmented) else schedule


def until(schedule: Schedule, updates: int) -> Schedule:
    """Returns what made the first updates of a run, at least 1."""
    if not isinstance(schedule, Segmented):
        return schedule
    return schedule_from(tuple(segment for segment in schedule.segments if segment[0] < updates))


def with_momentum(schedule: Schedule, momentum: float) -> Schedule:
    """Returns a schedule with another momentum."""
    if isinstance(schedule, Segmented):
        segments: Segments = ()
        for first, part in schedule.segments:
            segments = continued(segments, first, with_momentum(part, momentum))
        return schedule_from(segments)
    changed: Any = schedule
    return replace(changed, momentum=momentum)


def continued(segments: Segments, updates: int, schedule: Optional[Schedule]) -> Segments:
    """Returns the segments of a run that goes on with a schedule after a number of updates.

    Example:
        >>> from mmyolo_ema.schedule import Constant
        >>> continued(((0, Constant(0.5)),), 50, Constant(0.01))
        ((0, Constant(momentum=0.5, interval=1)), (50, Constant(momentum=0.01, interval=1)))
    """
    kept = tuple(segment for segment in segments if segment[0] < updates)
    return kept if kept and kept[-1][1] == schedule else (*kept, (updates, schedule))


def schedule_from(segments: Segments) -> Schedule:
    """Returns the schedule of a whole run.

    Raises:
        ValueError: If that of a segment is not known.
    """
    known = tuple((first, schedule) for first, schedule in segments if schedule is not None)
    if len(known) < len(segments):
        first = next(first for first, schedule in segments if schedule is None)
        raise ValueError(f'the schedule of its average is not known from update {first} on')
    return known[0][1] if len(known) == 1 else Segmented(known)


def as_data(segments: Segments) -> list[list[Any]]:
    """Returns segments as a checkpoint holds them."""
    return [[first, schedule and dict(asdict(schedule), ema_type=name_of(schedule))]  # type: ignore[call-overload]
            for first, schedule in segments]


def stored_segments(meta: dict) -> Segments:
    """Returns the segments of the run that a checkpoint is of.

    Args:
        meta: What the checkpoint says about itself.

    Raises:
        ValueError: If the file says it in a form that is not understood, or its config has several EMAHooks or an
            average of an unknown class.
    """
    said = _own(meta).get('schedule')
    if said is None:
        hook = stored_hook(meta)
        return ((0, schedule_of(hook) if hook else None),)
    try:
        if len(said) > _MOST_SEGMENTS:
            raise TypeError(f'{len(said)} segments')
        segments = tuple((int(first), None if options is None else schedule_of(options)) for first, options in said)
    except (AttributeError, OverflowError, TypeError) as error:
        raise ValueError(f'the schedule of its average is not understood: {said!r:.80}') from error
    if not segments or segments[0][0] != 0:
        raise ValueError(f'the schedule of its average does not begin at update 0: {said!r:.80}')
    return segments


def stored_age(meta: dict, updates: int) -> Optional[float]:
    """Returns the mean age of a checkpoint's average in updates, None if it is not known.

    Args:
        meta: What the checkpoint says about itself.
        updates: How many updates the average has had.
    """
    age = _own(meta).get('mean_age')
    if isinstance(age, float) and _own(meta).get('updates') == updates:
        return age
    with suppress(ValueError):
        return figures(schedule_from(stored_segments(meta)), [updates])[0].mean_age if updates else 0.0
    return None


def _own(meta: dict) -> dict:
    own = meta.get('mmyolo_ema')
    return own if isinstance(own, dict) else {}
