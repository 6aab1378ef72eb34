"""Making averages of a run's checkpoints, with a part of the weights in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmyolo_ema.checkpoint import averaged_weights, has_ema, raw_weights, read, verify, weights_of
from mmyolo_ema.checkpoint.difference import is_statistic
from mmyolo_ema.checkpoint.weights import Form, form_of

if TYPE_CHECKING:
    from mmyolo_ema.posthoc.reconstruction import Reconstruction
    from mmyolo_ema.posthoc.run import SnapshotFile, StoredRun

# So many bytes of a set of weights are summed up at a time, in float64, for each average.
_GROUP_BYTES = 64 * 2**20

# What a variance cannot fall below, as a share of the newest snapshot's.
_LEAST_VARIANCE = 1e-3


def build(
    averages: Sequence[Reconstruction], progress: Callable[[Iterable[SnapshotFile]], Iterable[SnapshotFile]] = iter
) -> list[dict[str, Any]]:
    """Returns the weights of averages of a run, by the names of the tensors. Names of one tensor share it.

    Each tensor of each file is read once, whatever the number of averages. Floating tensors are summed up in float64
    and get their own dtype back. All others, and what the average copies from the model (buffers without
    ``update_buffers``, what is excluded by name, infinities), are those of the newest file. Variances are kept above 0,
    which a sum with negative coefficients may miss. The progress wraps the files, for each part of the weights.

    Raises:
        ValueError: If the averages are of several runs; if a file is damaged, lacks a tensor that counts or holds it in
            another shape or kind of number than the newest, or holds NaN or infinity in one.
    """
    run = averages[0].run
    if any(average.run != run for average in averages):
        raise ValueError(
            'averages of several runs cannot be made in one go: '
            + ', '.join(f'{average.target.name} of {average.run.files[-1].path}' for average in averages)
        )
    content = read(run.files[-1].path, mmap=True)
    newest = averaged_weights(content)
    raw = raw_weights(content) if has_ema(content) else {}
    copied = _copied(run, newest, raw)
    forms = {name: form_of(value) for name, value in newest.items() if run.firsts[name] == name and name not in copied}
    forms = {name: form for name, form in forms.items() if form.kind in ('floating', 'complex')}
    _check_sources(run, forms)
    built: list[dict[str, Any]] = [{} for _ in averages]
    ends = dict(zip(forms, accumulate(newest[name].nbytes for name in forms)))
    for _, group in groupby(forms, key=lambda name: ends[name] // _GROUP_BYTES):
        precise = {name: torch.complex128 if forms[name].kind == 'complex' else torch.float64 for name in group}
        sums = [
            {name: torch.zeros_like(newest[name], dtype=dtype) for name, dtype in precise.items()} for _ in averages
        ]
        for file in progress(run.files):
            _add(sums, averages, file)
        for weights, totals in zip(built, sums):
            for name, total in totals.items():
                # One look at the sum instead of one at each file: what is not finite in one is not in the sum.
                if total.isfinite().all():
                    weights[name] = _finished(name, total, newest[name])
                elif not _is_same(newest[name], raw.get(name)):  # a copy of the model's is left for the loop below
                    raise ValueError(_not_finite(name, run))
    for weights in built:
        for name, value in newest.items():
            first = run.firsts[name]
            weights[name] = (
                weights[first] if first in weights else value.clone() if isinstance(value, Tensor) else value
            )
    return [{name: weights[name] for name in newest} for weights in built]


def _check_sources(run: StoredRun, forms: Mapping[str, Form]) -> None:
    """Raises unless all files are what was written, and hold tensors of the newest's form."""
    for file in run.files:
        verify(file.path)
        content = read(file.path, mmap=True)
        for kind in file.kinds:
            weights = weights_of(content, kind)
            for name, wanted in forms.items():
                form = form_of(weights.get(name))
                if form != wanted:
                    raise ValueError(
                        f'{file.path} does not fit {run.files[-1].path}: {name} among its {kind} weights '
                        f'is {form.kind} of shape {form.shape} instead of {wanted.kind} of shape '
                        f'{wanted.shape}'
                    )


def _copied(run: StoredRun, newest: Mapping[str, Any], raw: Mapping[str, Any]) -> set[str]:
    """Returns what the average copies from the model at each update; files do not list all of it."""
    return {
        name
        for name, value in newest.items()
        if name in run.copied or (not run.update_buffers and (is_statistic(name) or _is_same(value, raw.get(name))))
    }


def _is_same(averaged: Any, raw: Any) -> bool:
    return isinstance(averaged, Tensor) and form_of(averaged) == form_of(raw) and torch.equal(averaged, raw)


def _add(sums: Sequence[dict[str, Tensor]], averages: Sequence[Reconstruction], file: SnapshotFile) -> None:
    """Adds what a file contributes to the sums of some tensors, a set for each average."""
    run, content = averages[0].run, read(file.path, mmap=True)
    multiplicity = run.multiplicity
    for place, (source, kind) in enumerate(run.sources):
        if source != file:
            continue
        weights = weights_of(content, kind)
        for name, total in sums[0].items():
            coefficients = [float(average.fits[multiplicity[name]].coefficients[place]) for average in averages]
            if any(coefficients):
                # Once for all averages: the conversion takes longer than the sum.
                value = weights[name].to(total.dtype)
                for totals, coefficient in zip(sums, coefficients):
                    if coefficient:
                        totals[name].add_(value, alpha=coefficient)


def _not_finite(name: str, run: StoredRun) -> str:
    """Returns where the NaN or infinity of a sum is from."""
    for file, kind in run.sources:
        if not weights_of(read(file.path, mmap=True), kind)[name].isfinite().all():
            return f'{file.path} holds NaN or infinity: {name}'
    return f'the average would hold NaN or infinity: {name}'


def _finished(name: str, total: Tensor, like: Tensor) -> Tensor:
    if name.endswith('running_var'):
        # Far below what any short average has of it, and above 0.
        total = torch.maximum(total, like.double() * _LEAST_VARIANCE)
    return total.to(like.dtype)
