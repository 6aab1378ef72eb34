"""How far two sets of weights are apart."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from mmyolo_ema.checkpoint.streaming import chunks


class TensorDifference(NamedTuple):
    """Two tensors of one name and shape.

    Attributes:
        name: The name.
        numbers: How many elements each holds.
        differing: How many of them differ; two NaN are the same.
        square: Sum of the squared differences.
        norm: Sum of the squares of the second tensor.
    """

    name: str
    numbers: int
    differing: int
    square: float
    norm: float

    @property
    def relative(self) -> Optional[float]:
        """L2 distance over the norm of the second tensor; None if it is not finite."""
        return _relative(self.square, self.norm)


@dataclass(frozen=True)
class GroupDifference:
    """The tensors of a part of a model, or of all of it, compared: how many there are, and how many of them differ."""

    group: str
    tensors: int
    numbers: int
    differing: int
    relative: Optional[float]


def difference(name: str, tensor: Tensor, reference: Tensor) -> TensorDifference:
    """Compares two tensors of one shape; distances are computed in float64.

    Example:
        >>> import torch
        >>> difference('weight', torch.tensor([3., 4.]), torch.tensor([3., 0.])).relative
        1.3333333333333333
    """
    dtype = torch.complex128 if tensor.is_complex() or reference.is_complex() else torch.float64
    differing, square, norm = 0, 0.0, 0.0
    for left, right in chunks(tensor, reference):
        same = (left == right) | (left.isnan() & right.isnan())
        left, right = left.to(dtype), right.to(dtype)
        differing += same.numel() - int(same.sum())
        square += float((left - right).masked_fill_(same, 0).abs().square().sum())
        norm += float(right.abs().square().sum())
    return TensorDifference(name, tensor.numel(), differing, square, norm)


def by_group(differences: Iterable[TensorDifference]) -> list[GroupDifference]:
    """Adds up differences by the part of the model, statistics and counts apart."""
    groups: dict[str, list[TensorDifference]] = {}
    for tensor in differences:
        groups.setdefault(group_of(tensor.name), []).append(tensor)
    return [total(name, members) for name, members in groups.items()]


def total(group: str, members: list[TensorDifference]) -> GroupDifference:
    """Adds up differences."""
    return GroupDifference(
        group,
        len(members),
        sum(tensor.numbers for tensor in members),
        sum(tensor.differing > 0 for tensor in members),
        _relative(sum(tensor.square for tensor in members), sum(tensor.norm for tensor in members)),
    )


def group_of(name: str) -> str:
    """Returns the part of a model that a tensor is in: ``backbone``, ``neck``; BatchNorm's buffers by themselves."""
    part = name.split('.')[0]
    if is_statistic(name):
        return f'{part}: running statistics'
    return f'{part}: counts of batches' if name.endswith('num_batches_tracked') else part


def is_statistic(name: str) -> bool:
    """Whether a tensor is a running mean or variance, by its name."""
    return name.endswith(('running_mean', 'running_var'))


def _relative(square: float, norm: float) -> Optional[float]:
    if square == 0:
        return 0.0
    ratio = math.sqrt(square / norm) if norm else math.inf
    return ratio if math.isfinite(ratio) else None
