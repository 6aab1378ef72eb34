"""The schedule of an average, whatever its class."""

from dataclasses import fields
from typing import Optional

from mmengine.model import BaseAveragedModel

from mmyolo_ema.schedules import Schedule
from mmyolo_ema.schedules.classes import SCHEDULES

# Whose classes have the schedules that are known by name.
_PACKAGES = ('mmengine', 'mmdet', 'mmyolo')


def schedule_of(average: BaseAveragedModel) -> Optional[Schedule]:
    """Returns the momentum of each update of an average.

    Args:
        average: An average of this package's class or one derived from it, which says its ``schedule``; or of a class
            of MMEngine, MMDetection or MMYOLO itself.

    Returns:
        The schedule; None if it is not known.

    Example:
        >>> import torch
        >>> from mmengine.model import ExponentialMovingAverage
        >>> schedule_of(ExponentialMovingAverage(torch.nn.Linear(1, 1), momentum=0.1))
        Constant(momentum=0.1, interval=1)
    """
    schedule = getattr(average, 'schedule', None)
    if isinstance(schedule, Schedule):
        return schedule
    kind = type(average)
    if kind.__module__.split('.')[0] not in _PACKAGES or kind.__name__ not in SCHEDULES:
        return None
    known = SCHEDULES[kind.__name__]
    return known(**{field.name: getattr(average, field.name) for field in fields(known)})
