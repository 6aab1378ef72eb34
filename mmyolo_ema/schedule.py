"""The names of :mod:`mmyolo_ema.schedules`, under the name that they had first."""

from mmyolo_ema.schedules import *  # noqa: F403
from mmyolo_ema.schedules import __all__ as __all__
