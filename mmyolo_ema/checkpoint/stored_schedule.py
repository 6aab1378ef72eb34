"""What a checkpoint says about the schedule of its average."""

from contextlib import suppress
from typing import Any, Optional

from mmyolo_ema.checkpoint.weights import origin
from mmyolo_ema.ema_config import schedule_of, stored_hook
from mmyolo_ema.schedules import Segmented, figures
from mmyolo_ema.schedules.history import Segments, from_data, latest, schedule_from, with_momentum


def stored_segments(meta: dict[str, Any]) -> Segments:
    """Returns the segments of the run that a checkpoint is of.

    The config in the file tells the only schedule where the file does not say it itself.

    Raises:
        ValueError: If the file says it in a form that is not understood, or its config has several EMAHooks or an
            average of an unknown class.
    """
    said = origin(dict(meta=meta)).get('schedule')
    if said is not None:
        return from_data(said)
    hook = stored_hook(meta)
    return ((0, schedule_of(hook) if hook else None),)


def second_segments(meta: dict[str, Any]) -> Segments:
    """Returns the segments of the second average that a SnapshotHook keeps.

    They differ from those of the first in the momentum, where the file says no more.

    Raises:
        ValueError: As :func:`stored_segments`, or if the file does not say it.
    """
    said = origin(dict(meta=meta))
    if said.get('second_schedule') is not None:
        return from_data(said['second_schedule'])
    momentum, schedule = said.get('second_momentum'), schedule_from(stored_segments(meta))
    if not isinstance(momentum, float) or not 0 < momentum < 1 or not hasattr(latest(schedule), 'momentum'):
        raise ValueError(f'the schedule of its second average is not known: second_momentum is {momentum!r}')
    changed = with_momentum(schedule, momentum)
    return changed.segments if isinstance(changed, Segmented) else ((0, changed),)


def stored_age(meta: dict[str, Any], updates: int) -> Optional[float]:
    """Returns the mean age of an average that had so many updates, in updates, None if it is not known."""
    said = origin(dict(meta=meta))
    if isinstance(said.get('mean_age'), float) and said.get('updates') == updates:
        return said['mean_age']
    with suppress(ValueError):
        return figures(schedule_from(stored_segments(meta)), [updates])[0].mean_age if updates else 0.0
    return None
