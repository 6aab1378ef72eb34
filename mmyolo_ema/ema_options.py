"""Which options an EMAHook and its average take: one rule for the hook and the tools."""

from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from mmyolo_ema.ema_config import class_name, ema_type_of
from mmyolo_ema.schedules.classes import SCHEDULES

__all__ = ['check_options', 'of_average']

_OF_MMENGINE = ('ema_type', 'strict_load', 'begin_iter', 'begin_epoch')
_OF_HOOK = dict(mmengine=_OF_MMENGINE,
                mmyolo_ema=(*_OF_MMENGINE, 'evaluate_on_ema', 'evaluate_on_origin', 'skip_nonfinite', 'mean_age'))
# What a config may say of each hook, and of what is built.
_OF_ANY = ('type', 'priority', '_scope_')


def check_options(hook: dict) -> None:
    """Raises if an EMAHook, ours or MMEngine's, has an option that neither the hook nor its average takes.

    An average of a class that is not known is not looked at.

    Args:
        hook: The hook's options, as a config has them.

    Raises:
        TypeError: With the names that are near, and all that there are.

    Example:
        >>> check_options(dict(type='EMAHook', momentums=0.1))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        TypeError: EMAHook has no option momentums (did you mean momentum?): it takes ema_type, strict_load, ...
    """
    package, average = _package(hook['type']), class_name(ema_type_of(hook))
    if package not in _OF_HOOK or average not in SCHEDULES:
        return
    of_average = _of_average(average)
    known = [*_OF_HOOK[package], *of_average]
    for option in hook:
        if option not in (*known, *_OF_ANY):
            near = get_close_matches(option, known, n=2)
            hint = f' (did you mean {" or ".join(near)}?)' if near else ''
            if option in _of_average('ExpMomentumEMA'):
                hint = " (ema_type='mmyolo_ema.ExpMomentumEMA' has it)"
            raise TypeError(f'{class_name(hook["type"])} has no option {option}{hint}: it takes '
                            f'{", ".join(_OF_HOOK[package])}, and its average {average} takes {", ".join(of_average)}')


def of_average(hook: dict) -> dict[str, Any]:
    """Returns the options of the average that an EMAHook makes, and its ``type``.

    Args:
        hook: The hook's options, as a config has them.

    Example:
        >>> of_average(dict(type='EMAHook', momentum=0.1, begin_epoch=2))
        {'momentum': 0.1, 'type': 'ExponentialMovingAverage'}
    """
    not_its = (*_OF_HOOK['mmyolo_ema'], *_OF_ANY)
    return dict({name: value for name, value in hook.items() if name not in not_its}, type=ema_type_of(hook))


def _of_average(name: str) -> list[str]:
    return [*(field.name for field in fields(SCHEDULES[name])), 'device', 'update_buffers']


def _package(kind: Any) -> str:
    """Returns the package of a hook's class; a bare name is MMEngine's."""
    path = kind if isinstance(kind, str) else f'{kind.__module__}.{kind.__name__}'
    return path.split('.')[0] if '.' in path else 'mmengine'
