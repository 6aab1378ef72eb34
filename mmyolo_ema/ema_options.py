"""Which options an EMAHook and its average take: one rule for the hook and the tools."""

from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from mmengine.registry import Registry

from mmyolo_ema.ema_config import SECOND_HORIZON, TAKEN_NAMES, class_name, ema_type_of, package_of
from mmyolo_ema.schedules import instead_of_decay
from mmyolo_ema.schedules.classes import SCHEDULES, schedule_of_class

_OF_MMENGINE = ('ema_type', 'strict_load', 'begin_iter', 'begin_epoch')
_OF_HOOK = dict(
    mmengine=_OF_MMENGINE,
    mmyolo_ema=(
        *_OF_MMENGINE,
        'evaluate_on_ema',
        'evaluate_on_origin',
        'skip_nonfinite',
        'mean_age',
        'averages',
        'evaluate',
    ),
)
# What this package's class takes, and not MMDetection's of the same name.
_OF_OWN = ('include', 'exclude', 'dtype', 'save_dtype', 'shard')
# What a config may say of each hook, and of what is built.
_OF_ANY = ('type', 'priority', '_scope_')


def check_options(hook: dict[str, Any]) -> None:
    """Raises if an EMAHook, ours or MMEngine's, has an option that neither the hook nor its average takes.

    An average of a class that is not known is not looked at.

    Args:
        hook: The hook's options, as a config has them.

    Raises:
        TypeError: With the names that are near, and all that there are.
        ValueError: If a value is out of its range, or two options contradict each other.

    Example:
        >>> check_options(dict(type='EMAHook', momentums=0.1))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        TypeError: EMAHook has no option momentums (did you mean momentum?): it takes ema_type, strict_load, ...
    """
    package, ema_type = package_of(hook['type']), ema_type_of(hook)
    average = class_name(ema_type)
    if package not in _OF_HOOK or average not in SCHEDULES:
        return
    of_average = _of_average(average, is_own=package_of(ema_type) == 'mmyolo_ema')
    known = [*_OF_HOOK[package], *of_average]
    unknown = [option for option in hook if option not in (*known, *_OF_ANY)]
    if unknown:
        named = ' and no option '.join(option + _hint(option, hook[option], known) for option in unknown)
        raise TypeError(
            f'{class_name(hook["type"])} has no option {named}: it takes '
            f'{", ".join(_OF_HOOK[package])}, and its average {average} takes {", ".join(of_average)}'
        )
    if hook.get('shard') and package == 'mmengine':
        raise ValueError("shard=True needs type='mmyolo_ema.EMAHook', which makes the average whole for a validation")
    if hook.get('mean_age') is not None:
        check_mean_age_alone(hook['mean_age'], hook)
    if hook.get('begin_iter') and hook.get('begin_epoch'):
        raise ValueError(f'begin_epoch={hook["begin_epoch"]} and begin_iter={hook["begin_iter"]} exclude each other')
    check_averages(hook.get('averages'))
    kinds_to_evaluate(
        hook.get('evaluate'),
        hook.get('evaluate_on_ema', True),
        hook.get('evaluate_on_origin', False),
        hook.get('averages') or {},
    )
    for options in (hook.get('averages') or {}).values():
        check_options(dict(options, type=hook['type'], ema_type=ema_type))
    schedule_of_class(average, hook)


def check_averages(averages: Any) -> None:
    """Raises if further averages have no form of their own: a name that is free, and a schedule.

    Args:
        averages: Options of each average, by its name; or None.

    Raises:
        TypeError: If it is another thing, or an average has an option that is the hook's.
        ValueError: If a name is taken, or an average has neither ``mean_age`` nor ``momentum``.
    """
    if averages is not None and not isinstance(averages, dict):
        raise TypeError(f'averages must be a dictionary of options by name, but got {averages!r}')
    for name, options in (averages or {}).items():
        if not isinstance(name, str) or not name.isidentifier() or name in TAKEN_NAMES:
            raise ValueError(
                f'an average cannot be called {name!r}: a name is a word such as short, and none of '
                f'{", ".join(TAKEN_NAMES)}'
            )
        if not isinstance(options, dict):
            raise TypeError(f'the average {name!r} must be a dictionary of options, but got {options!r}')
        of_hook = [
            option for option in options if option in (*_OF_HOOK['mmyolo_ema'], *_OF_ANY) and option != 'mean_age'
        ]
        if of_hook:
            raise TypeError(
                f'the average {name!r} cannot have {of_hook[0]}={options[of_hook[0]]!r} of its own: that '
                'is an option of the EMAHook, for all averages'
            )
        if options.get('mean_age') is None and options.get('momentum') is None:
            raise ValueError(f'the average {name!r} needs a mean_age or momentum of its own, but got {dict(options)}')


def kinds_to_evaluate(evaluate: Any, on_ema: bool, on_origin: bool, averages: Any) -> list[str]:
    """Returns which weights a validation evaluates: 'ema', 'raw' and names of further averages.

    Args:
        evaluate: The names, or None.
        on_ema: What stands for it: whether the average is validated.
        on_origin: And whether the model is validated beside it.
        averages: The further averages, by name.

    Raises:
        TypeError: If it is no list.
        ValueError: If it has an unknown name, one twice, or neither 'ema' nor 'raw'; or both forms are used.
    """
    if evaluate is None:
        return ['ema', *(['raw'] if on_origin else [])] if on_ema else ['raw']
    if not isinstance(evaluate, (list, tuple)):
        raise TypeError(f"evaluate must be a list such as ['ema', 'raw'], but got {evaluate!r}")
    if not on_ema or on_origin:
        raise ValueError(f'evaluate={evaluate!r} says it all: leave out evaluate_on_ema and evaluate_on_origin')
    known = ['ema', 'raw', *averages]
    for name in evaluate:
        if name not in (*known, SECOND_HORIZON):  # which another hook may ask for
            near = get_close_matches(str(name), known, n=1)
            raise ValueError(
                f'evaluate has {name!r}, but there are only {", ".join(known)}'
                f'{f": did you mean {near[0]}?" if near else ""}'
            )
    if len(set(evaluate)) < len(evaluate) or not {'ema', 'raw'} & set(evaluate):
        raise ValueError(f"evaluate must have 'ema' or 'raw', and each name once, but got {evaluate!r}")
    return list(evaluate)


def check_mean_age_alone(mean_age: Any, options: dict[str, Any]) -> None:
    """Raises ValueError if the momentum or gamma that a mean age works out are among the options too."""
    given = [f'{name}={options[name]!r}' for name in ('momentum', 'gamma') if name in options]
    if given:
        raise ValueError(
            f'mean_age={mean_age!r} works momentum and gamma out for the run, but {" and ".join(given)} '
            'is given too: name either that or these'
        )


def check_class(kind: Any, registry: Registry) -> None:
    """Raises ValueError if a class of this package is named that there is none of, with names that are near."""
    if isinstance(kind, str) and kind.startswith('mmyolo_ema.') and registry.get(kind) is None:
        known = [f'mmyolo_ema.{name}' for name in registry.module_dict]
        near = get_close_matches(kind, known, n=1)
        hint = f': did you mean {near[0]}?' if near else f', only {", ".join(known)}'
        raise ValueError(f'there is no {kind}{hint}')


def _hint(option: str, value: Any, known: list[str]) -> str:
    if option == 'decay' and isinstance(value, (int, float)):
        return f' ({instead_of_decay(value)})'
    if option in _of_average('ExpMomentumEMA', is_own=True):
        return " (ema_type='mmyolo_ema.ExpMomentumEMA' has it)"
    near = get_close_matches(option, known, n=2)
    return f' (did you mean {" or ".join(near)}?)' if near else ''


def of_average(hook: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of the average that an EMAHook makes, and its ``type``.

    Example:
        >>> of_average(dict(type='EMAHook', momentum=0.1, begin_epoch=2))
        {'momentum': 0.1, 'type': 'ExponentialMovingAverage'}
    """
    not_its = (*_OF_HOOK['mmyolo_ema'], *_OF_ANY)
    return dict({name: value for name, value in hook.items() if name not in not_its}, type=ema_type_of(hook))


def _of_average(name: str, is_own: bool) -> list[str]:
    options = [*(field.name for field in fields(SCHEDULES[name])), 'device', 'update_buffers']
    return [*options, *_OF_OWN] if is_own else options
