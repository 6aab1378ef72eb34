"""The average that a config names: its hook, and the schedule of its class."""

import ast
from typing import Any, Optional

from mmyolo_ema.schedules import Schedule
from mmyolo_ema.schedules.classes import schedule_of_class

#: Names that no further average can have: those of other weights, and what ends metrics of COCO.
TAKEN_NAMES = ('ema', 'raw', 'only', 'origin', 's', 'm', 'l')

#: The name of the average that the ``second_horizon`` of a SnapshotHook asks for.
SECOND_HORIZON = 'second'

# A longer text takes far more memory than its size; a config has a hundredth of that.
_LONGEST = 10**6
# Larger integers are no floats, which schedules reckon with.
_MOST_BITS = 64


def hooks_named(hooks: Any, name: str) -> list[tuple[int, dict[str, Any]]]:
    """Returns the places of the hooks of a class in a config's ``custom_hooks``, and their options.

    Raises:
        ValueError: If ``custom_hooks`` is no list.
    """
    if not isinstance(hooks, (list, tuple, type(None))):
        raise ValueError(f'custom_hooks must be a list, but got {hooks!r:.80}')
    return [
        (place, hook)
        for place, hook in enumerate(hooks or [])
        if isinstance(hook, dict) and class_name(hook.get('type')) == name
    ]


def ema_hook_in(hooks: Any) -> Optional[tuple[int, dict[str, Any]]]:
    """Returns the place of the EMAHook in a config's ``custom_hooks``, and its options; None if there is none.

    Raises:
        ValueError: If there are several, or ``custom_hooks`` is no list.
    """
    placed = hooks_named(hooks, 'EMAHook')
    if len(placed) > 1:
        raise ValueError(f"it has {len(placed)} EMAHooks in custom_hooks, which undo each other's work")
    return placed[0] if placed else None


def schedule_of(hook: dict[str, Any]) -> Schedule:
    """Returns the schedule of the average that an EMAHook makes, of a class that is known.

    Raises:
        ValueError: If the class is not known, or it would refuse the options, or they name a mean age: what that makes
            of momentum and gamma depends on the run.

    Example:
        >>> schedule_of(dict(type='EMAHook', ema_type='ExpMomentumEMA', momentum=0.05, update_buffers=True))
        Ramp(momentum=0.05, gamma=2000, interval=1)
    """
    if hook.get('mean_age') is not None:
        raise ValueError(f'mean_age={hook["mean_age"]!r} is for a run whose length is not known here')
    return schedule_of_class(class_name(ema_type_of(hook)), hook)


def ema_type_of(hook: dict[str, Any]) -> Any:
    """Returns the class of the average that an EMAHook makes: with a mean age this package's, unless one is named."""
    usual = 'ExponentialMovingAverage' if hook.get('mean_age') is None else 'mmyolo_ema.ExpMomentumEMA'
    return hook.get('ema_type') or usual


def averages_by_name(hook: dict[str, Any]) -> bool:
    """Whether the average of an EMAHook averages a tensor once for each of its names: those of all classes but ours."""
    return hook.get('update_buffers') is True and package_of(ema_type_of(hook)) != 'mmyolo_ema'


def stored_hook(meta: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of the EMAHook in the config that a checkpoint holds; empty if there is none.

    Raises:
        ValueError: If there are several.
    """
    _, hook = ema_hook_in(hooks_in_text(str(meta.get('cfg') or ''))) or (None, {})
    return hook


def hooks_in_text(text: str) -> list[Any]:
    """Returns the ``custom_hooks`` of a config's text, which is read and not run.

    What is no literal stands there as its text. An empty list if the text is not understood.

    Example:
        >>> hooks_in_text("custom_hooks = [dict(type='EMAHook', momentum=0.05, other=len)]")
        [{'type': 'EMAHook', 'momentum': 0.05, 'other': 'len'}]
    """
    if len(text) > _LONGEST:
        return []
    try:
        statements = ast.parse(text).body
        values = [
            _literal(statement.value)
            for statement in statements
            if isinstance(statement, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == 'custom_hooks' for target in statement.targets)
        ]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return []
    return values[-1] if values and isinstance(values[-1], list) else []


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords if keyword.arg}
    if isinstance(node, ast.List):
        return [_literal(item) for item in node.elts]
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        return ast.unparse(node)
    return repr(value) if isinstance(value, int) and value.bit_length() > _MOST_BITS else value


def class_name(kind: Any) -> str:
    """Returns the name of a class, given as a config has it: as a class or by its name with or without a scope."""
    return getattr(kind, '__name__', str(kind)).split('.')[-1]


def package_of(kind: Any) -> str:
    """Returns the package of a class, given as a config has it; a bare name is MMEngine's."""
    path = f'{kind.__module__}.{kind.__name__}' if isinstance(kind, type) else str(kind)
    return path.split('.')[0] if '.' in path else 'mmengine'
