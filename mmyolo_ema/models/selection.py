"""Which tensors of a model are averaged, by their names."""

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import combinations
from typing import Any, Optional

from torch import nn

from mmyolo_ema.models.tensor_references import tensor_references


@dataclass(frozen=True)
class Selection:
    """Regular expressions over the names of tensors, which :func:`re.search` looks for.

    Args:
        include: Tensors to average. Defaults to None: all.
        exclude: Tensors of those that are not averaged.

    Raises:
        TypeError: If an argument is no list of texts.
        ValueError: If a text is no regular expression.

    Example:
        >>> selection = Selection(exclude=['^teacher'])
        >>> selection.has(['student.weight']), selection.has(['student.bias', 'teacher.bias'])
        (True, False)
    """

    include: Optional[Iterable[str]] = None
    exclude: Iterable[str] = ()

    def __post_init__(self) -> None:
        if self.include is not None:
            object.__setattr__(self, 'include', _patterns('include', self.include))
        object.__setattr__(self, 'exclude', _patterns('exclude', self.exclude))

    def has(self, names: Iterable[str]) -> bool:
        """Whether a tensor with these names is averaged: none is excluded and, with ``include``, one is included."""
        return not _matches(self.exclude, names) and (self.include is None or self.includes(names))

    def includes(self, names: Iterable[str]) -> bool:
        """Whether ``include`` names a tensor."""
        return _matches(self.include or (), names)

    def excluded(self, model: nn.Module) -> list[str]:
        """Returns all names of the tensors of a bare model that are not averaged."""
        names_of = defaultdict(list)
        for name, reference in tensor_references(model):
            names_of[id(reference.tensor)].append(name)
        return [name for names in names_of.values() if not self.has(names) for name in names]

    def check(self, model: nn.Module) -> None:
        """Raises ValueError if a pattern matches no name of a bare model, or no parameter is left to average."""
        references = dict(tensor_references(model))
        for option, patterns in (('include', self.include or ()), ('exclude', self.exclude)):
            for pattern in patterns:
                if not _matches([pattern], references):
                    raise ValueError(
                        f'{option}={list(patterns)}: {pattern!r} matches no tensor of the model'
                        f'{_near(pattern, references)}'
                    )
        parameters = {name for name, reference in references.items() if reference.is_parameter}
        if parameters and parameters <= set(self.excluded(model)):
            raise ValueError(f'include={self.include} and exclude={self.exclude} leave no parameter to average')


def _patterns(option: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(pattern, str) for pattern in value):
        raise TypeError(f"{option} must be a list of regular expressions, such as ['^backbone'], but got {value!r}")
    for pattern in value:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f'{option}: {pattern!r} is no regular expression: {error}') from error
    return tuple(value)


def _matches(patterns: Iterable[str], names: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns for name in names)


def _near(pattern: str, names: Iterable[str]) -> str:
    """Returns names of modules and tensors, or parts of them, that are near a pattern, as a question, or nothing."""
    known = {
        '.'.join(parts[start:stop])
        for name in names
        for parts in [name.split('.')]
        for start, stop in combinations(range(len(parts) + 1), 2)
    }
    near = get_close_matches(re.sub(r'[\\^$]', '', pattern).strip('.'), sorted(known))
    return f': did you mean {" or ".join(near)}?' if near else ''
