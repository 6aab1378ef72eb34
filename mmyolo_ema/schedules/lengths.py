"""Lengths of training as users write them: 500 updates, 2 epochs, 4 % of the run."""

import re
from typing import Optional

_FORM = re.compile(r'\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(%|epochs?|updates?)?\s*', re.IGNORECASE)


def in_updates(text: str, updates: int, updates_per_epoch: Optional[float] = None) -> float:
    """Returns a length of training in updates.

    Args:
        text: ``'500'`` (updates), ``'2epochs'``, or ``'4%'`` of the run.
        updates: Number of updates in the run.
        updates_per_epoch: Number of updates in an epoch, None if it is not known. Defaults to None.

    Returns:
        The length in updates, above 0.

    Raises:
        ValueError: If the text is of another form, not above 0, or names epochs where their length is not known.

    Example:
        >>> in_updates('4%', updates=480), in_updates('2 epochs', updates=480, updates_per_epoch=20)
        (19.2, 40.0)
    """
    parts = _FORM.fullmatch(text)
    try:
        number = float(parts[1]) if parts else 0.0
    except ValueError:  # such as 1.2.3
        number = 0.0
    if parts is None or not 0 < number < float('inf'):
        raise ValueError(
            f"a length of training is written as '500' (updates), '2epochs' or '4%' (of the run) and is "
            f'above 0, but got {text!r}'
        )
    unit = (parts[2] or 'updates').lower().rstrip('s')
    if unit == 'update' and number < 1:
        raise ValueError(f"{text!r} is less than one update; a share of the run is written as '{100 * number:g}%'")
    if unit == '%':
        return number / 100 * updates
    if unit == 'update':
        return number
    if updates_per_epoch is None:
        raise ValueError(f'{text!r} needs the number of updates in an epoch, which is not known here')
    return number * updates_per_epoch
