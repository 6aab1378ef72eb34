"""Making averages of a run's checkpoints, with a part of the weights in memory at a time."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmyolo_ema.checkpoint import has_ema, raw_weights, read, verify
from mmyolo_ema.checkpoint.difference import is_statistic
from mmyolo_ema.checkpoint.weights import averaged_weights, form_of, is_dense, origin
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
    and get their own dtype back. All others, and what the average copies from the model (buffers without
    ``update_buffers``, infinities), are those of the newest file. Variances are kept above 0, which a sum with negative
    coefficients may miss.

    Args:
        run: The run.
        coefficients: For each average, by its name, the coefficients of ``run.sources`` for the tensors with so many
            names; for all of ``run.multiplicities``.
        progress: Wraps the steps that are made, as tqdm does. Defaults to showing nothing.

    Returns:
        The weights of each average, by the names of the tensors. Names of one tensor share it.

    Raises:
        ValueError: If a file is damaged, lacks a tensor that counts or holds it in another shape or kind of number than
            the newest, or holds NaN or infinity in one.
    """
    content = read(run.files[-1].path, mmap=True)
    newest = averaged_weights(content)
    raw = raw_weights(content) if has_ema(content) else {}
    buffers = set() if run.update_buffers else _buffers(run.files[-1].path, content, newest, raw)
    summed = [name for name, value in newest.items()
              if run.firsts[name] == name and _has_numbers(value) and name not in buffers]
    _check_sources(run, summed, newest)
    built: dict[str, dict[str, Any]] = {name: {} for name in coefficients}
    groups = list(_groups(summed, newest))
    steps = [(group, file) for group in groups for file in run.files]
    sums: Sums = {}
    for group, file in progress(steps):
        if file == run.files[0]:
            sums = {name: {tensor_name: torch.zeros_like(newest[tensor_name], dtype=_precise(newest[tensor_name]))
                           for tensor_name in group} for name in coefficients}
        _add(sums, run, file, group, coefficients)
        if file == run.files[-1]:
            for name, tensors in sums.items():
                # One look at the sums instead of one at each file: what is not finite in one is not in the sum.
                finite = {tensor_name: total for tensor_name, total in tensors.items() if bool(total.isfinite().all())}
                _check_copied([tensor_name for tensor_name in tensors if tensor_name not in finite], run, newest, raw)
                built[name].update((tensor_name, _finished(tensor_name, total, newest[tensor_name]))
                                   for tensor_name, total in finite.items())
            sums = {}
    for weights in built.values():
        for name, value in newest.items():
            first = run.firsts[name]
            weights[name] = weights[first] if first in weights else _copy(value)
    return {name: {tensor_name: weights[tensor_name] for tensor_name in newest} for name, weights in built.items()}


def _check_sources(run: StoredRun, names: list[str], newest: Mapping[str, Any]) -> None:
    """Raises unless all files are what was written, and hold tensors of the newest's form."""
    forms = {name: form_of(newest[name]) for name in names}
    for file in run.files:
        verify(file.path)
        content = read(file.path, mmap=True)
        for kind in file.kinds:
            weights = KINDS[kind](content)
            for name, wanted in forms.items():
                form = form_of(weights.get(name))
                if form != wanted:
                    raise ValueError(f'{file.path} does not fit {run.files[-1].path}: {name} among its {kind} weights '
                                     f'is {form.kind} of shape {form.shape} instead of {wanted.kind} of shape '
                                     f'{wanted.shape}')


def _has_numbers(value: Any) -> bool:
    return isinstance(value, Tensor) and is_dense(value) and (value.is_floating_point() or value.is_complex())


def _buffers(path: Path, content: dict[str, Any], newest: Mapping[str, Any], raw: Mapping[str, Any]) -> set[str]:
    """Returns what the average copies from the model at each update; a file does not say which names are buffers."""
    listed = origin(content).get('buffers') or []
    if not isinstance(listed, (list, tuple)):
        raise ValueError(f'{path}: the names of its buffers must be a list, but are {listed!r:.80}')
    return {name for name, value in newest.items()
            if name in listed or is_statistic(name) or _is_same(value, raw.get(name))}


def _is_same(averaged: Any, raw: Any) -> bool:
    return isinstance(averaged, Tensor) and form_of(averaged) == form_of(raw) and torch.equal(averaged, raw)


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
        for tensor_name in group:
            count = multiplicity[tensor_name]
            wanted = {name: float(parts[count][place]) for name, parts in coefficients.items() if parts[count][place]}
            if wanted:
                # Once for all averages: the conversion takes longer than the sum.
                value = weights[tensor_name].to(sums[next(iter(wanted))][tensor_name].dtype)
                for name, coefficient in wanted.items():
                    sums[name][tensor_name].add_(value, alpha=coefficient)


def _check_copied(names: list[str], run: StoredRun, newest: Mapping[str, Any], raw: Mapping[str, Any]) -> None:
    """Raises unless tensors whose sums are not finite are copies of the model's, such as a mask with infinities."""
    for name in names:
        if _is_same(newest[name], raw.get(name)):
            continue
        for file, kind in run.sources:
            if not bool(KINDS[kind](read(file.path, mmap=True))[name].isfinite().all()):
                raise ValueError(f'{file.path} holds NaN or infinity: {name}')
        raise ValueError(f'the average would hold NaN or infinity: {name}')


def _finished(name: str, total: Tensor, like: Tensor) -> Tensor:
    if name.endswith('running_var'):
        # Far below what any short average has of it, and above 0.
        total = torch.maximum(total, like.double() * _LEAST_VARIANCE)
    return total.to(like.dtype)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) and is_dense(value) else value
