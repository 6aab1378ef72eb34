"""What a checkpoint holds, and what is wrong with it."""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Optional

from torch import Tensor

from mmyolo_ema.checkpoint.archive import verify
from mmyolo_ema.checkpoint.difference import (
    GroupDifference,
    TensorDifference,
    by_group,
    difference,
    is_statistic,
    total,
)
from mmyolo_ema.checkpoint.reading import read, read_weights
from mmyolo_ema.checkpoint.stored_schedule import stored_age, stored_segments
from mmyolo_ema.checkpoint.streaming import ABSENT, chunks, fingerprint, stream
from mmyolo_ema.checkpoint.weights import (
    FURTHER,
    SECOND,
    first_names,
    form_of,
    further_averages,
    has_ema,
    origin,
    updates_in,
    weights_in,
    weights_of,
)
from mmyolo_ema.ema_config import hooks_in_text, hooks_named, stored_hook
from mmyolo_ema.schedules import Schedule
from mmyolo_ema.schedules.history import latest, schedule_from


@dataclass
class StoredWeights:
    """One set of weights in a file.

    Attributes:
        kind: 'ema', 'raw', the name of a further average, or 'only' where the file does not say which.
        key: Where it is in the file.
        tensors: Number of tensors, by name.
        numbers: How many elements they hold; what several names share is counted once.
        dtypes: Their dtypes.
        nonfinite: Names of the tensors with NaN or infinity.
        size: Bytes of the tensors; what several names share is counted once.
        updates: How often the average was updated; None of raw weights, or if the file does not say.
        mean_age: As of :class:`StoredAverage`.
    """

    kind: str
    key: str
    tensors: int
    numbers: int
    dtypes: list[str]
    nonfinite: list[str] = field(default_factory=list)
    size: int = 0
    updates: Optional[int] = None
    mean_age: Optional[float] = None


@dataclass
class StoredAverage:
    """The average in a file.

    Attributes:
        updates: How often it was updated; None if the file does not say.
        hook: Options of its EMAHook, from the config in the file; empty if there is none.
        mean_age: How old what it holds is, on average, in updates; None if that does not follow.
        schedule: The momentum of its updates, in words; None if it is not known.
        made: How it was made of a run's checkpoints after the training; None if it was not.
        hooks: How many EMAHooks the config in the file has.
        horizon: ``1 / momentum`` of the schedule, in updates; None if that is not known, or has none.
    """

    updates: Optional[int]
    hook: dict[str, Any]
    mean_age: Optional[float]
    schedule: Optional[str] = None
    made: Optional[dict[str, Any]] = None
    hooks: int = 0
    horizon: Optional[float] = None


@dataclass
class Inspection:
    """What a checkpoint holds.

    Attributes:
        file: Its path.
        size: Its length in bytes.
        epoch: Epochs trained, if it says so.
        iteration: Iterations trained, if it says so.
        written_by: Version of MMEngine, if it says so.
        weights: Its sets of weights.
        average: Its average, the main one of several; None if it holds none.
        has_optimizer: Whether it holds the state of an optimizer, so that a run can go on from it.
        parts: Bytes of tensors in each of its parts; the rest of the file under ``'rest'``.
        distance: How far average and raw weights are apart, over all but counts and statistics, relative to the raw;
            what several names share counts once.
        differences: The same by parts of the model, counts and statistics too.
        shared: Names of each tensor that is stored once under several names.
        repeated: Names of tensors with the same content that are stored several times.
        stale: Names of BatchNorm layers whose statistics in the average stopped following the model.
        unmatched: Names that one of the sets lacks, or that average and raw weights have in another shape.
    """

    file: str
    size: int
    epoch: Optional[int]
    iteration: Optional[int]
    written_by: Optional[str]
    weights: list[StoredWeights]
    average: Optional[StoredAverage]
    has_optimizer: bool
    parts: dict[str, int]
    distance: Optional[GroupDifference] = None
    differences: list[GroupDifference] = field(default_factory=list)
    shared: list[list[str]] = field(default_factory=list)
    repeated: list[list[str]] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)


def inspect(path: Path) -> Inspection:
    """Looks at all weights of a checkpoint.

    The file is mapped; no more than one set of its weights is in memory at a time.

    Args:
        path: As for :func:`mmyolo_ema.checkpoint.read`.

    Raises:
        OSError, ValueError: As :func:`mmyolo_ema.checkpoint.read` does.

    Example:
        >>> import os, tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, 'epoch_1.pth')
        ...     torch.save(dict(state_dict=dict(weight=torch.tensor([1., float('nan')]))), path)
        ...     weights, = inspect(path).weights
        >>> weights.kind, weights.tensors, weights.numbers, weights.nonfinite
        ('only', 1, 2, ['weight'])
    """
    path = Path(path)
    content = read(path, mmap=True)
    verify(path, must_have_checksums=False)
    meta = _dictionary(content.get('meta'))
    averages = {kind: _average(content, kind) for kind in weights_in(content)}
    parts = _sizes(content)
    inspection = Inspection(
        file=str(path),
        size=path.stat().st_size,
        epoch=_integer(meta.get('epoch')),
        iteration=_integer(meta.get('iter')),
        # MMEngine appends the hash of its last commit, without a space.
        written_by=re.sub('[0-9a-f]{40}$', '', str(meta['mmengine_version'])) if 'mmengine_version' in meta else None,
        weights=[_stored(content, kind, average) for kind, average in averages.items()],
        average=next(iter(averages.values())),
        has_optimizer=bool(_dictionary(content.get('optimizer'))),
        parts={**parts, 'rest': path.stat().st_size - sum(parts.values())},
        shared=_shared(weights_of(content, 'raw' if 'raw' in averages else None)),
    )
    del content
    _compare_sets(path, inspection)
    return inspection


def _average(content: dict[str, Any], kind: str) -> Optional[StoredAverage]:
    """Returns what is known of an average; None of weights that are none."""
    if kind in ('raw', 'only'):
        return None
    meta, updates, own = _dictionary(content.get('meta')), updates_in(content, kind), origin(content, kind)
    hook, hooks = _hook(meta), len(hooks_named(hooks_in_text(str(meta.get('cfg') or '')), 'EMAHook'))
    made = _made(own.get('posthoc'))
    if made is not None:
        return StoredAverage(updates, hook, made.get('mean_age'), made.get('schedule'), made, hooks)
    if kind != 'ema':
        meta = dict(mmyolo_ema=own)  # the config tells the schedule of the main one
    age, schedule = stored_age(meta, updates) if updates else None, _schedule(meta)
    momentum = None if schedule is None else getattr(latest(schedule), 'momentum', None)
    return StoredAverage(
        updates, hook, age, None if schedule is None else str(schedule), hooks=hooks, horizon=momentum and 1 / momentum
    )


def _compare_sets(path: Path, inspection: Inspection) -> None:
    """Goes through all weights once, and adds what it finds."""
    kinds = [weights.kind for weights in inspection.weights]
    has_both, raw_place = kinds[:2] == ['ema', 'raw'], kinds.index('raw') if 'raw' in kinds else 0
    names: dict[bytes, list[str]] = {}
    compared: list[TensorDifference] = []
    lag: dict[str, int] = {}
    for name, values in stream(*(partial(read_weights, path, kind) for kind in kinds)):
        for weights, value in zip(inspection.weights, values):
            if isinstance(value, Tensor) and not _is_finite(value):
                weights.nonfinite.append(name)
        # The raw weights say which tensors a model shares: an average may have lost it.
        raw = values[raw_place]
        content = fingerprint(raw) if isinstance(raw, Tensor) and raw.dim() > 1 else None
        if content:
            names.setdefault(content, []).append(name)
        if any(value is ABSENT for value in values):
            inspection.unmatched.append(name)
        if has_both and all(isinstance(value, Tensor) and value.numel() for value in values[:2]):
            ema = values[0]
            if ema.shape != raw.shape:
                inspection.unmatched.append(name)
            else:
                compared.append(difference(name, ema, raw))
                if (
                    name.endswith('num_batches_tracked')
                    and raw.numel() == 1
                    and (form_of(ema).kind == form_of(raw).kind == 'integer')
                ):
                    lag[name.removesuffix('num_batches_tracked')] = int(raw) - int(ema)
    stored_once = [set(group) for group in inspection.shared]
    inspection.repeated = [
        group
        for group in names.values()
        if len(group) > 1 and not any(set(group) <= names_of_one for names_of_one in stored_once)
    ]
    if has_both:
        again = {name for group in [*inspection.shared, *inspection.repeated] for name in group[1:]}
        compared = [tensor for tensor in compared if tensor.name not in again]
        inspection.differences = by_group(compared)
        parameters = [
            tensor
            for tensor in compared
            if not (is_statistic(tensor.name) or tensor.name.endswith('num_batches_tracked'))
        ]
        inspection.distance = total('parameters', parameters) if parameters else None
        inspection.stale = list(_stale(compared, lag, inspection.average))


def _stale(compared: list[TensorDifference], lag: dict[str, int], average: Optional[StoredAverage]) -> Iterator[str]:
    """Yields the BatchNorm layers whose statistics were copied once and then never again.

    Their num_batches_tracked stands still, and without ``update_buffers`` they ought to be the raw ones. With it, the
    statistics are averaged, and only num_batches_tracked stands still in the classes of MMDetection and MMEngine.
    """
    if average is None or average.hook.get('update_buffers', False) is True or not average.updates:
        return
    differing = {
        tensor.name.rpartition('.')[0] + '.' for tensor in compared if is_statistic(tensor.name) and tensor.differing
    }
    # Steps with NaN that were left out make it lag a little.
    yield from (
        layer.rstrip('.')
        for layer, batches in lag.items()
        if layer in differing and batches > 1 and batches >= (average.updates - 1) / 2
    )


def _stored(content: dict[str, Any], kind: str, average: Optional[StoredAverage]) -> StoredWeights:
    tensors = {name: value for name, value in weights_of(content, kind).items() if isinstance(value, Tensor)}
    distinct = [tensors[name] for name in set(first_names(tensors).values())]
    key = 'ema_state_dict' if kind == 'raw' and has_ema(content) else 'state_dict'
    if kind in further_averages(content):
        key = SECOND if content.get(SECOND) is further_averages(content)[kind] else f'{FURTHER}.{kind}'
    return StoredWeights(
        kind=kind,
        key=key,
        tensors=len(tensors),
        numbers=sum(tensor.numel() for tensor in distinct),
        dtypes=sorted({str(tensor.dtype).removeprefix('torch.') for tensor in tensors.values()}),
        size=sum(tensor.nbytes for tensor in distinct),
        updates=average.updates if average else None,
        mean_age=average.mean_age if average else None,
    )


def _shared(weights: dict[str, Any]) -> list[list[str]]:
    names: dict[str, list[str]] = {}
    for name, first in first_names(weights).items():
        names.setdefault(first, []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _is_finite(tensor: Tensor) -> bool:
    return all(bool(part.isfinite().all()) for (part,) in chunks(tensor))


def _sizes(content: dict[str, Any]) -> dict[str, int]:
    """Returns the bytes of the tensors in each part of a file; what several parts share counts for the first."""
    seen: set[int] = set()
    sizes = {str(part): _size(value, seen) for part, value in content.items()}
    return {part: size for part, size in sizes.items() if size}


def _size(value: Any, seen: set[int]) -> int:
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        if storage.data_ptr() in seen:
            return 0
        seen.add(storage.data_ptr())
        return storage.nbytes()
    items = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return sum(_size(item, seen) for item in items)


def _made(stored: Any) -> Optional[dict[str, Any]]:
    """Returns what a file says of how its average was made; what should be a number and is none is left out."""
    if not isinstance(stored, dict):
        return None
    return {
        key: value
        for key, value in stored.items()
        if key not in ('error', 'mean_age') or isinstance(value, (int, float))
    }


def _hook(meta: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of the EMAHook in the config that a file holds, if it holds one."""
    with suppress(ValueError):
        return stored_hook(meta)
    return {}


def _schedule(meta: dict[str, Any]) -> Optional[Schedule]:
    with suppress(ValueError):
        return schedule_from(stored_segments(meta))
    return None


def _dictionary(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _integer(value: Any) -> Optional[int]:
    return value if isinstance(value, int) else None
