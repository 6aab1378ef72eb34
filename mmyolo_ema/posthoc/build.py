"""Making averages of a run's checkpoints, with a part of the weights in memory at a time."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmyolo_ema.checkpoint import listed, read
from mmyolo_ema.checkpoint.difference import is_statistic
from mmyolo_ema.checkpoint.weights import averaged_weights, is_dense
from mmyolo_ema.posthoc.snapshots import KINDS, SnapshotFile, StoredRun

__all__ = ['build']

# So many bytes of a set of weights are summed up at a time, in float64, for each average.
_GROUP_BYTES = 64 * 2**20

# What a variance cannot fall below, as a share of the newest snapshot's.
_LEAST_VARIANCE = 1e-3

Sums = dict[str, dict[str, Tensor]]


def build(run: StoredRun, coefficients: Mapping[str, Mapping[int, np.ndarray]],
          progress: Callable[[Iterable], Iterable] = iter) -> dict[str, dict[str, Any]]:
    """Returns averages made of a run's checkpoints.

    Each tensor of each file is read once, whatever the number of averages. Floating tensors are summed up in float64
    and get their own dtype back. All others, and without ``update_buffers`` the statistics of BatchNorm, are those of
    the newest file. Variances are kept above 0, which a sum with negative coefficients may miss.

    Args:
        run: The run.
        coefficients: For each average, by its name, the coefficients of ``run.snapshots`` for the tensors with so many
            names; for all of ``run.multiplicities``.
        progress: Wraps the steps that are made, as tqdm does. Defaults to showing nothing.

    Returns:
        The weights of each average, by the names of the tensors. Names of one tensor share it.

    Raises:
        ValueError: If a file holds NaN or infinity in a tensor that counts.
    """
    newest = averaged_weights(read(run.files[-1].path, mmap=True))
    summed = [name for name, value in newest.items() if run.firsts[name] == name and _is_summed(name, value, run)]
    built: dict[str, dict[str, Any]] = {name: {} for name in coefficients}
    groups = list(_groups(summed, newest))
    steps = [(group, file) for group in groups for file in run.files]
    sums: Sums = {}
    for group, file in progress(steps):
        if file == run.files[0]:
            sums = {name: {each: torch.zeros_like(newest[each], dtype=_precise(newest[each])) for each in group}
                    for name in coefficients}
        _add(sums, run, file, group, coefficients)
        if file == run.files[-1]:
            for name, tensors in sums.items():
                # One look at the sums instead of one at each file: what is not finite in one is not in the sum.
                _check_finite(tensors, run)
                built[name].update((each, _finished(each, total, newest[each])) for each, total in tensors.items())
            sums = {}
    for weights in built.values():
        for name, value in newest.items():
            first = run.firsts[name]
            weights[name] = weights[first] if first in weights else _copy(value)
    return {name: {each: weights[each] for each in newest} for name, weights in built.items()}


def _is_summed(name: str, value: Any, run: StoredRun) -> bool:
    if not (isinstance(value, Tensor) and is_dense(value) and (value.is_floating_point() or value.is_complex())):
        return False
    return run.update_buffers or not is_statistic(name)


def _groups(names: list[str], weights: Mapping[str, Tensor]) -> Iterable[list[str]]:
    group: list[str] = []
    size = 0
    for name in names:
        if group and size + weights[name].nbytes > _GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(name)
        size += weights[name].nbytes
    if group:
        yield group


def _precise(value: Tensor) -> torch.dtype:
    return torch.complex128 if value.is_complex() else torch.float64


def _add(sums: Sums, run: StoredRun, file: SnapshotFile, group: list[str],
         coefficients: Mapping[str, Mapping[int, np.ndarray]]) -> None:
    """Adds what a file contributes to a group of tensors."""
    content, multiplicity = read(file.path, mmap=True), run.multiplicity
    for place, (source, kind) in enumerate(run.sources):
        if source != file:
            continue
        weights = KINDS[kind](content)
        for each in group:
            count = multiplicity[each]
            wanted = {name: float(parts[count][place]) for name, parts in coefficients.items() if parts[count][place]}
            if wanted:
                # Once for all averages: the conversion takes longer than the sum.
                value = weights[each].to(sums[next(iter(wanted))][each].dtype)
                for name, coefficient in wanted.items():
                    sums[name][each].add_(value, alpha=coefficient)


def _check_finite(totals: Mapping[str, Tensor], run: StoredRun) -> None:
    """Raises if a sum holds NaN or infinity, and names the file that brought it in."""
    broken = [name for name, total in totals.items() if not bool(total.isfinite().all())]
    if broken:
        first = broken[0]
        for file, kind in run.sources:
            if not bool(KINDS[kind](read(file.path, mmap=True))[first].isfinite().all()):
                raise ValueError(f'{file.path} holds NaN or infinity: {first}')
        raise ValueError('the average would hold NaN or infinity' + listed(': ', broken))


def _finished(name: str, total: Tensor, like: Tensor) -> Tensor:
    if name.endswith('running_var'):
        # Far below what any short average has of it, and above 0.
        total = torch.maximum(total, like.double() * _LEAST_VARIANCE)
    return total.to(like.dtype)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and is_dense(value) else value
