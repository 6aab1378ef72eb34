"""Whether two files hold the same weights."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional

import numpy as np
from torch import Tensor

from mmyolo_ema.checkpoint.archive import verify
from mmyolo_ema.checkpoint.difference import GroupDifference, TensorDifference, by_group, difference
from mmyolo_ema.checkpoint.reading import read, read_weights
from mmyolo_ema.checkpoint.streaming import ABSENT, stream
from mmyolo_ema.checkpoint.weights import first_names, weights_in

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
        farthest: Those of them that are farthest apart, relative to their size, without BatchNorm's
            num_batches_tracked.
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
        return not (
            self.only_in_one
            or self.only_in_other
            or self.other_shape
            or self.other_dtype
            or self.other_value
            or any(group.differing for group in self.groups)
        )


def compare(one: Path, other: Path, kind: Optional[str] = None) -> Comparison:
    """Compares one set of weights of two files; neither file is held in memory.

    Args:
        one: As for :func:`mmyolo_ema.checkpoint.read`.
        other: The second file.
        kind: 'ema' for the averaged weights, 'raw' for the raw ones, or the name of a further average; a file that
            holds one set and does not say which fits all. Defaults to None: the averaged weights of a file that holds
            several, otherwise the only ones.

    Raises:
        OSError, ValueError: As :func:`mmyolo_ema.checkpoint.read` does; or if a file has no such weights.
    """
    comparison = Comparison([], [], [], [], [], [], [])
    compared = []
    # What a file that holds one set and does not say which holds is of any kind.
    sets = [
        partial(read_weights, path, None if weights_in(read(path, mmap=True)) == ['only'] else kind)
        for path in (one, other)
    ]
    firsts = [first_names(open_set()) for open_set in sets]
    for path in (one, other):
        verify(path, must_have_checksums=False)
    for name, (left, right) in stream(*sets):
        if left is ABSENT or right is ABSENT:
            (comparison.only_in_other if left is ABSENT else comparison.only_in_one).append(name)
        elif not (isinstance(left, Tensor) and isinstance(right, Tensor)):
            if not _are_same(left, right):
                comparison.other_value.append(name)
        elif left.shape != right.shape:
            comparison.other_shape.append(f'{name} {tuple(left.shape)} {tuple(right.shape)}')
        else:
            if left.dtype != right.dtype:
                comparison.other_dtype.append(f'{name} {left.dtype} {right.dtype}'.replace('torch.', ''))
            # What both files hold once under several names is compared once.
            if name in {first.get(name) for first in firsts} or firsts[0][name] != firsts[1][name]:
                compared.append(difference(name, left, right))
    comparison.groups = by_group(compared)
    differing = [tensor for tensor in compared if tensor.differing and not tensor.name.endswith('num_batches_tracked')]
    comparison.farthest = sorted(differing, key=_distance, reverse=True)[:_MOST]
    return comparison


def _are_same(left: Any, right: Any) -> bool:
    """Whether what modules keep besides tensors is the same; NaN is the same as NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_are_same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(_are_same, left, right))
    if isinstance(left, Tensor):
        return left.shape == right.shape and not difference('', left, right).differing
    if isinstance(left, np.ndarray):
        return _are_same(left.tolist(), right.tolist())
    return left == right or (left != left and right != right)


def _distance(tensor: TensorDifference) -> float:
    return float('inf') if tensor.relative is None else tensor.relative
