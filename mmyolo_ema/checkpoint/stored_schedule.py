"""What a checkpoint says about the schedule of its average."""

from contextlib import suppress
from dataclasses import replace
from typing import Any, Optional

from mmyolo_ema.ema_config import schedule_of, stored_hook
from mmyolo_ema.schedules import figures
from mmyolo_ema.schedules.history import Segments, as_data, continued, from_data, schedule_from


def about_averages(meta: Any) -> dict[str, Any]:
    """Returns what a file says under ``meta['mmyolo_ema']``, if it is a dictionary."""
    own = meta.get('mmyolo_ema') if isinstance(meta, dict) else None
    return own if isinstance(own, dict) else {}


def stored_segments(meta: dict[str, Any]) -> Segments:
    """Returns the segments of the run that a checkpoint is of.

    The config in the file tells the only schedule where the file does not say it itself.

    Raises:
        ValueError: If the file says it in a form that is not understood, or its config has several EMAHooks or an
            average of an unknown class.
    """
    said = about_averages(meta).get('schedule')
    if said is not None:
        return from_data(said)
    hook = stored_hook(meta)
    return ((0, schedule_of(hook) if hook else None),)


def second_schedule(meta: dict[str, Any]) -> Any:
    """Returns the schedule of a second average in a file of before there were further ones, as data.

    It differs from that of the main average in the momentum, where the file says no more.
    """
    said = about_averages(meta)
    if 'second_schedule' in said:
        return said['second_schedule']
    segments: Segments = ()
    try:
        for first, schedule in stored_segments(meta):
            changed: Any = schedule
            segments = continued(segments, first, replace(changed, momentum=said.get('second_momentum')))
    except (ValueError, TypeError):  # not known, or without a momentum
        segments = ((0, None),)
    return as_data(segments, 0)


def stored_age(meta: dict[str, Any], updates: int) -> Optional[float]:
    """Returns the mean age of an average that had so many updates, in updates, None if it is not known."""
    said = about_averages(meta)
    if isinstance(said.get('mean_age'), float) and said.get('updates') == updates:
        return said['mean_age']
    with suppress(ValueError):
        return figures(schedule_from(stored_segments(meta)), [updates])[0].mean_age if updates else 0.0
    return None
