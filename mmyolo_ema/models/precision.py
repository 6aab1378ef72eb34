"""In which dtype an average is kept and stored."""

from typing import Any, Optional

import torch
from torch import Tensor


def floating_dtype(option: str, value: Any, known: tuple[str, ...]) -> Optional[torch.dtype]:
    """Returns the dtype that an option names, by its name or itself; None for None.

    Args:
        option: The option's name, for the error.
        value: What was given.
        known: The names of those that are possible.

    Raises:
        ValueError: If it is another one.

    Example:
        >>> floating_dtype('dtype', 'float32', ('float32', 'float64'))
        torch.float32
    """
    if value is None:
        return None
    if str(value).removeprefix('torch.') not in known:
        raise ValueError(f'{option} must be one of {", ".join(map(repr, known))}, but got {value!r}')
    return getattr(torch, str(value).removeprefix('torch.'))


def widen(tensor: Tensor, dtype: Optional[torch.dtype]) -> None:
    """Converts a tensor in its place to a dtype if its own has fewer bits, such as bfloat16."""
    if dtype is not None and tensor.is_floating_point() and tensor.dtype.itemsize < dtype.itemsize:
        tensor.data = tensor.data.to(dtype)
