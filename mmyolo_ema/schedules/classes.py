"""The schedules of the classes of averages that are known, by the names of the classes."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Optional

from mmyolo_ema.schedules.momenta import Annealing, Constant, Ramp, Schedule, Uniform

#: The schedules of the classes of averages that are known.
SCHEDULES: dict[str, Any] = {
    'ExpMomentumEMA': Ramp,
    'ExponentialMovingAverage': Constant,
    'MomentumAnnealingEMA': Annealing,
    'StochasticWeightAverage': Uniform,
}


def schedule_of_class(name: str, options: Mapping[str, Any]) -> Schedule:
    """Returns the schedule of an average by the name of its class; options of others are passed over.

    Raises:
        ValueError: If the class is not known, or it would refuse the options.

    Example:
        >>> schedule_of_class('ExpMomentumEMA', dict(momentum=0.05, update_buffers=True))
        Ramp(momentum=0.05, gamma=2000, interval=1)
    """
    if name not in SCHEDULES:
        raise ValueError(f'the schedule of ema_type={name!r} is not known; known are {", ".join(SCHEDULES)}')
    schedule = SCHEDULES[name]
    chosen = {key: options[key] for key in (field.name for field in fields(schedule)) if key in options}
    limits = dict(momentum=1, gamma=math.inf, interval=math.inf)
    for key, value in chosen.items():
        kind = int if key == 'interval' else (int, float)
        if not isinstance(value, kind) or isinstance(value, bool) or not 0 < value < limits[key]:
            raise ValueError(
                f'{key} must be {"an integer" if key == "interval" else "a number"} above 0'
                f'{" and below 1" if key == "momentum" else ""}, but got {value!r}'
            )
    return schedule(**chosen)


def name_of(schedule: Schedule) -> Optional[str]:
    """Returns the class of averages that has a schedule, None if there is none."""
    return next((name for name, kind in SCHEDULES.items() if type(schedule) is kind), None)
