"""Whether two files hold the same weights."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mmyolo_ema.checkpoint.difference import GroupDifference, TensorDifference, by_group, difference
from mmyolo_ema.checkpoint.reading import read
from mmyolo_ema.checkpoint.streaming import stream
from mmyolo_ema.checkpoint.weights import averaged_weights, has_ema, weights_of

__all__ = ['Comparison', 'compare']

_MOST = 5


@dataclass
class Comparison:
    """How the weights of two files differ; distances are relative to those of the second.

    Attributes:
        only_in_one: Names that the second file lacks.
        only_in_other: Names that the first file lacks.
        other_shape: Names with both shapes, where they differ.
        other_dtype: Names with both dtypes, where they differ.
        other_value: Names of what is no tensor and differs.
        groups: The tensors that both have in one shape, by parts of the model.
        farthest: Those of them that are farthest apart, relative to their size.
    """

    only_in_one: list[str]
    only_in_other: list[str]
    other_shape: list[str]
    other_dtype: list[str]
    other_value: list[str]
    groups: list[GroupDifference]
    farthest: list[TensorDifference]

    @property
    def are_equal(self) -> bool:
        """Whether names, shapes, dtypes and all values are the same."""
        return not (self.only_in_one or self.only_in_other or self.other_shape or self.other_dtype or self.other_value
                    or any(group.differing for group in self.groups))


def compare(one: Path, other: Path, kind: str = 'ema') -> Comparison:
    """Compares one set of weights of two files; neither file is held in memory.

    Args:
        one: As for :func:`mmyolo_ema.checkpoint.read`.
        other: The second file.
        kind: 'ema' for the averaged weights, 'raw' for the raw ones, of a file that holds both; of another file, the
            only ones are compared. Defaults to 'ema'.

    Raises:
        OSError, ValueError: As :func:`mmyolo_ema.checkpoint.read` does.
    """
    found = Comparison([], [], [], [], [], [], [])
    compared = []
    for name, (left, right) in stream(*(partial(_open, path, kind) for path in (one, other))):
        if left is None or right is None:
            (found.only_in_other if left is None else found.only_in_one).append(name)
        elif not (isinstance(left, Tensor) and isinstance(right, Tensor)):
            if isinstance(left, Tensor) or isinstance(right, Tensor) or left != right:
                found.other_value.append(name)
        elif left.shape != right.shape:
            found.other_shape.append(f'{name} {tuple(left.shape)} {tuple(right.shape)}')
        else:
            if left.dtype != right.dtype:
                found.other_dtype.append(f'{name} {left.dtype} {right.dtype}'.replace('torch.', ''))
            compared.append(difference(name, left, right))
    found.groups = by_group(compared)
    differing = [each for each in compared if each.differing]
    found.farthest = sorted(differing, key=_distance, reverse=True)[:_MOST]
    return found


def _distance(found: TensorDifference) -> float:
    return float('inf') if found.relative is None else found.relative


def _open(path: Path, kind: str) -> dict[str, Any]:
    content = read(path, mmap=True)
    return weights_of(content, kind) if has_ema(content) else averaged_weights(content)
