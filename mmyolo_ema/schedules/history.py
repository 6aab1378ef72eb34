"""The schedules that made an average one after the other, and how a checkpoint says so.

A run may be resumed with another momentum. So a checkpoint of this package has a list of segments in
``meta['mmyolo_ema']['schedule']``: ``[[first update, what made it], ...]``. That is the options of a known class of
averages, for any other schedule the momenta of all updates so far, or None if it is not known.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, Optional

from mmyolo_ema.schedules.classes import name_of, schedule_of_class
from mmyolo_ema.schedules.momenta import Recorded, Schedule, Segmented

#: First update and schedule of each segment; None for a schedule that is not known.
Segments = tuple[tuple[int, Optional[Schedule]], ...]

# Nobody resumes more often; each takes time in each update that is gone through.
_MOST_SEGMENTS = 1000


def latest(schedule: Schedule) -> Schedule:
    """Returns the last of schedules that followed each other."""
    return schedule.segments[-1][1] if isinstance(schedule, Segmented) else schedule


def until(schedule: Schedule, updates: int) -> Schedule:
    """Returns what made the first updates of a run, at least 1."""
    if isinstance(schedule, Recorded):
        return replace(schedule, momenta=schedule.momenta[:updates])
    if not isinstance(schedule, Segmented):
        return schedule
    return schedule_from([(first, until(part, updates)) for first, part in schedule.segments if first < updates])


def continued(segments: Segments, updates: int, schedule: Optional[Schedule]) -> Segments:
    """Returns the segments of a run that goes on with a schedule after a number of updates.

    Example:
        >>> from mmyolo_ema.schedules import Constant
        >>> continued(((0, Constant(0.5)),), 50, Constant(0.01))
        ((0, Constant(momentum=0.5, interval=1)), (50, Constant(momentum=0.01, interval=1)))
    """
    kept = tuple(segment for segment in segments if segment[0] < updates)
    if not kept or not _goes_on(*kept[-1], updates, schedule):
        return (*kept, (updates, schedule))
    return (*kept[:-1], (kept[-1][0], schedule))


def _goes_on(first: int, past: Optional[Schedule], updates: int, schedule: Optional[Schedule]) -> bool:
    """Whether a schedule is that of the updates before; of one that was recorded, whether it has the same momenta."""
    if isinstance(past, Recorded) and schedule is not None:
        return all(past(step) == schedule(step) for step in range(first, updates))
    return past == schedule


def schedule_from(segments: Sequence[tuple[int, Optional[Schedule]]]) -> Schedule:
    """Returns the schedule of a whole run.

    Raises:
        ValueError: If that of a segment is not known.
    """
    known = tuple((first, schedule) for first, schedule in segments if schedule is not None)
    if len(known) < len(segments):
        first = next(first for first, schedule in segments if schedule is None)
        raise ValueError(f'the schedule of its average is not known from update {first} on')
    return known[0][1] if len(known) == 1 else Segmented(known)


def as_data(segments: Segments, updates: int) -> list[list[Any]]:
    """Returns segments as a checkpoint holds them after a number of updates."""
    ends = [first for first, _ in segments[1:]] + [updates]
    return [
        [first, None if schedule is None else _described(schedule, end)]
        for (first, schedule), end in zip(segments, ends)
    ]


def _described(schedule: Schedule, updates: int) -> dict[str, Any]:
    name = name_of(schedule)
    if name is not None:
        return dict(asdict(schedule), ema_type=name)  # type: ignore[call-overload]
    return dict(momenta=[schedule(step) for step in range(updates)], interval=schedule.interval)


def from_data(stored: Any) -> Segments:
    """Returns the segments that a checkpoint holds.

    Raises:
        ValueError: If they are of another form, or of an average of an unknown class.
    """
    try:
        if len(stored) > _MOST_SEGMENTS:
            raise TypeError(f'{len(stored)} segments')
        segments = tuple(
            (int(first), None if described is None else _schedule(described)) for first, described in stored
        )
    except (AttributeError, KeyError, OverflowError, RuntimeError, TypeError) as error:
        raise ValueError(f'the schedule of its average is not understood: {stored!r:.80}') from error
    if not segments or segments[0][0] != 0:
        raise ValueError(f'the schedule of its average does not begin at update 0: {stored!r:.80}')
    return segments


def _schedule(described: dict[str, Any]) -> Schedule:
    if 'momenta' not in described:
        return schedule_of_class(described['ema_type'], described)
    momenta = tuple(map(float, described['momenta']))
    if not all(0 <= momentum <= 1 for momentum in momenta):
        raise ValueError('a recorded momentum of its average is not in [0, 1]')
    return Recorded(momenta, int(described['interval']))
