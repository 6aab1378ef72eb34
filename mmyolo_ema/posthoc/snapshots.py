"""The averages that the checkpoints of a run hold, and the schedules that they were made with."""

import math
import re
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union, cast

from torch import Tensor

from mmyolo_ema.checkpoint import ForeignFile, has_ema, listed, raw_weights, read, updates_in
from mmyolo_ema.checkpoint.stored_schedule import second_segments, stored_segments
from mmyolo_ema.checkpoint.streaming import fingerprint, stream
from mmyolo_ema.checkpoint.weights import SNAPSHOTS, averaged_weights, first_names, origin, second_weights
from mmyolo_ema.ema_config import averages_by_name, stored_hook
from mmyolo_ema.posthoc.gram import Snapshot
from mmyolo_ema.schedules import MOST_UPDATES, Constant, Repeated, Schedule
from mmyolo_ema.schedules.history import schedule_from, until

__all__ = ['KINDS', 'RAW', 'SnapshotFile', 'StoredRun', 'read_run', 'repeated']

#: The weights that a file may hold: the average, the raw weights, a second average.
KINDS: dict[str, Callable[[dict], dict[str, Any]]] = dict(
    ema=averaged_weights, raw=raw_weights, second=second_weights)

#: The schedule of the raw weights.
RAW = Constant(1.0)

# MMEngine ends the name of an experiment with the time when it was launched.
_LAUNCH = re.compile(r'_(\d{8}_\d{6})$')


def repeated(snapshot: Snapshot, times: int) -> Snapshot:
    """Returns the snapshot of tensors that are averaged so many times in an update; raw weights are as they were."""
    if snapshot.schedule == RAW or times == 1:
        return snapshot
    return snapshot._replace(schedule=Repeated(cast(Schedule, snapshot.schedule), times))


class SnapshotFile(NamedTuple):
    """A checkpoint of a run, how many updates its average had, and which weights it holds that no other does."""

    path: Path
    updates: int
    kinds: tuple[str, ...]


class StoredRun(NamedTuple):
    """The checkpoints of a run.

    Attributes:
        files: The checkpoints in the order of their updates.
        schedule: The momentum of each update of the average.
        second: That of the second average, None if there is none.
        update_buffers: Whether floating buffers are averaged too.
        once: Whether a tensor under several names was averaged once; otherwise once for each of its names.
        firsts: For each name of a tensor, the first of its names.
        updates_per_epoch: Number of updates in an epoch, None if the files do not say.
        left_out: Files that are not used, and why: they hold no average, or none that another file does not hold too,
            or are no checkpoints.
    """

    files: list[SnapshotFile]
    schedule: Schedule
    second: Optional[Schedule]
    update_buffers: bool
    once: bool
    firsts: dict[str, str]
    updates_per_epoch: Optional[float]
    left_out: dict[Path, str]

    @property
    def sources(self) -> list[tuple[SnapshotFile, str]]:
        """Where the snapshots are: files and kinds of weights."""
        return [(file, kind) for kind in KINDS for file in self.files if kind in file.kinds]

    def snapshots(self, multiplicity: int = 1) -> list[Snapshot]:
        """Returns what is at :attr:`sources`, for tensors with so many names. Defaults to 1."""
        schedules = dict(ema=self.schedule, raw=RAW, second=self.second)
        stored = [Snapshot(cast(Schedule, schedules[kind]), file.updates) for file, kind in self.sources]
        return stored if self.once else [repeated(snapshot, multiplicity) for snapshot in stored]

    @property
    def multiplicity(self) -> dict[str, int]:
        """Number of names of each tensor, by its first name."""
        return dict(Counter(self.firsts.values()))

    @property
    def multiplicities(self) -> list[int]:
        """How many names the tensors have that are averaged differently: 1 if that makes no difference."""
        return sorted(set(self.multiplicity.values()))

    @property
    def updates(self) -> int:
        """Number of updates in the newest file."""
        return self.files[-1].updates


def read_run(work_dir: Union[str, Path]) -> StoredRun:
    """Finds the checkpoints of a run, and what a SnapshotHook kept of it.

    Reads no tensors, but for those of one file where the average is of a class that averages a shared tensor once for
    each of its names: a file written from a GPU holds it as so many copies.

    Args:
        work_dir: Folder of a run with MMEngine's EMAHook or this package's.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no checkpoints with an average; if one is truncated; if the schedule of the average is not
            known, or not the same in all; if they hold other tensors; if they are of several runs.
    """
    work_dir = Path(work_dir)
    if work_dir.is_file():
        raise NotADirectoryError(f'{work_dir} is a file: name the work directory of the run')
    if not work_dir.is_dir():
        raise FileNotFoundError(f'there is no folder {work_dir}')
    records: list[_Record] = []
    left_out: dict[Path, str] = {}
    for path in [*sorted(work_dir.glob('[!.]*.pth')), *sorted(work_dir.glob(f'{SNAPSHOTS}/[!.]*.pth'))]:
        try:
            content = read(path, mmap=True)
        except ForeignFile as error:
            left_out[path] = str(error).removeprefix(f'{path} ')
            continue
        kinds = _kinds(content, is_slim=path.parent != work_dir)
        if kinds:
            records.append(_record(path, content, kinds))
        else:
            left_out[path] = 'no average of a run'
    if not records:
        raise ValueError(f'{work_dir} has no checkpoints with an average' +
                         listed('; not used: ', [f'{path.name} ({why})' for path, why in left_out.items()]))
    # Of two files of one update the one that has more: a full checkpoint before a slim snapshot.
    records.sort(key=lambda record: (record.updates, 'raw' not in record.kinds))
    _check_same(records)
    files = []
    seen: set[tuple[str, int]] = set()
    for record in records:
        kinds = tuple(kind for kind in record.kinds if (kind, record.updates) not in seen)
        seen.update((kind, record.updates) for kind in kinds)
        if kinds:
            files.append(SnapshotFile(record.path, record.updates, kinds))
        else:
            left_out[record.path] = 'another file holds that of the same update'
    newest = records[-1]
    once = not newest.averages_by_name
    return StoredRun(
        files=files,
        schedule=newest.schedule,
        second=next((record.second for record in reversed(records) if record.second), None),
        update_buffers=newest.update_buffers,
        once=once,
        firsts=_shared_names(files[-1].path, by_content=not once),
        updates_per_epoch=_updates_per_epoch(records),
        left_out=left_out)


class _Record(NamedTuple):
    """What a checkpoint says about its averages."""

    path: Path
    kinds: tuple[str, ...]
    update_buffers: bool
    averages_by_name: bool
    updates: int
    iteration: Any
    epoch: Any
    launch: Optional[str]
    seed: Optional[int]
    schedule: Schedule
    second: Optional[Schedule]
    updates_per_epoch: Optional[float]
    shapes: dict[str, Any]


def _updates_per_epoch(records: list[_Record]) -> Optional[float]:
    """Returns the number of updates in an epoch if a SnapshotHook stored it, or all checkpoints agree about it."""
    for record in records:
        if record.updates_per_epoch:
            return record.updates_per_epoch
    lengths = set()
    for before, after in pairwise(records):
        if after.updates > before.updates and isinstance(before.epoch, int) and isinstance(after.epoch, int):
            # Saved by iterations, the epoch is that which ended before, or the same.
            epochs = after.epoch - before.epoch
            lengths.add((after.updates - before.updates) / epochs if epochs > 0 else None)
    return lengths.pop() if len(lengths) == 1 else None


def _kinds(content: dict, is_slim: bool) -> tuple[str, ...]:
    """Returns which weights of a run a file holds; none if it is no snapshot of one, or of before its first update."""
    # Elsewhere, an average alone was extracted, and maybe in another precision; or made of snapshots.
    has_average = has_ema(content) or (is_slim and origin(content).get('weights') == 'ema')
    if not has_average or updates_in(content) == 0:
        return ()
    has = dict(ema=True, raw=has_ema(content), second=bool(second_weights(content)))
    return tuple(kind for kind in KINDS if has[kind])


def _record(path: Path, content: dict, kinds: tuple[str, ...]) -> _Record:
    meta = content.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    try:
        said = dict(_said_by_config(meta), **origin(content))
        schedule = schedule_from(stored_segments(meta)) if 'averages_by_name' in said else None
        second = schedule_from(second_segments(meta)) if schedule and 'second' in kinds else None
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    updates = updates_in(content)
    if schedule is None:
        raise ValueError(f'{path} does not hold the config of its run, which has the schedule of the average')
    if not updates:
        raise ValueError(f'{path} does not say how many updates its average had, from 1 to {MOST_UPDATES:,}')
    per_epoch = origin(content).get('updates_per_epoch')
    if per_epoch is not None and not (isinstance(per_epoch, (int, float)) and 0 < per_epoch < math.inf):
        raise ValueError(f'{path}: updates_per_epoch must be a number above 0, but is {per_epoch!r:.80}')
    launch = _LAUNCH.search(str(meta.get('experiment_name')))
    return _Record(
        path=path,
        kinds=kinds,
        update_buffers=said.get('update_buffers') is True,
        averages_by_name=said['averages_by_name'] is True,
        updates=updates,
        iteration=meta.get('iter'),
        epoch=meta.get('epoch'),
        launch=launch and launch[1],
        seed=meta['seed'] if isinstance(meta.get('seed'), int) else None,
        schedule=schedule,
        second=second,
        updates_per_epoch=per_epoch,
        # A file may lack BatchNorm's counts, as for every loader.
        shapes={name: getattr(value, 'shape', None) for name, value in averaged_weights(content).items()
                if not name.endswith('num_batches_tracked')})


def _said_by_config(meta: dict) -> dict[str, Any]:
    """Returns what the config in a file says of its average, for files that do not say it themselves."""
    if 'averages_by_name' in origin(dict(meta=meta)):
        return {}
    hook = stored_hook(meta)
    return hook and dict(update_buffers=hook.get('update_buffers') is True,
                         averages_by_name=averages_by_name(hook))


def _shared_names(path: Path, by_content: bool) -> dict[str, str]:
    """Returns, for each name of a tensor, the first of its names."""

    def open_weights() -> dict[str, Any]:
        content = read(path, mmap=True)
        averaged = averaged_weights(content)
        # An average may have lost what the model shares.
        raw = raw_weights(content) if has_ema(content) else averaged
        return {name: raw.get(name, value) for name, value in averaged.items()}

    firsts = first_names(open_weights())
    if not by_content:
        return firsts
    names: dict[bytes, str] = {}
    for name, (value,) in stream(open_weights):
        content = fingerprint(value) if isinstance(value, Tensor) and firsts[name] == name else None
        if content:
            firsts[name] = names.setdefault(content, name)
    return {name: firsts[first] for name, first in firsts.items()}


def _averaged_as(record: _Record) -> str:
    return f'update_buffers={record.update_buffers}' + (
        ', shared tensors once for each name' if record.averages_by_name else '')


def _check_same(records: list[_Record]) -> None:
    *earlier, newest = records
    for record in earlier:
        if record.schedule != until(newest.schedule, record.updates):
            raise ValueError(f'the schedule of the average changed between {record.path} ({record.schedule}) and '
                             f'{newest.path} ({newest.schedule}), which does not say when')
        if _averaged_as(record) != _averaged_as(newest):
            raise ValueError(f'{record.path} and {newest.path} were averaged in different ways: '
                             f'{_averaged_as(record)} and {_averaged_as(newest)}')
        if record.shapes != newest.shapes:
            differing = [name for name in {**newest.shapes, **record.shapes}
                         if newest.shapes.get(name) != record.shapes.get(name)]
            raise ValueError(f'{newest.path} and {record.path} do not hold the same tensors: '
                             f'{", ".join(differing[:3])}')
    seconds = [(record.path, record.updates, record.second) for record in records if record.second]
    for path, updates, second in seconds:
        last, _, schedule = seconds[-1]
        if second != until(schedule, updates):
            raise ValueError(f'the second average changed between {path} ({second}) and {last} ({schedule})')
    for before, after in pairwise(records):
        start, end = before.iteration, after.iteration
        # An update takes an iteration at least; a run that was started anew counts both from 0 again.
        counts_differ = isinstance(start, int) and isinstance(end, int) and end - start < after.updates - before.updates
        # One that was started anew in the same folder wrote over the first files of the one before.
        is_older = before.launch and after.launch and after.launch < before.launch
        # A run that resumes goes on with its seed.
        is_other = before.seed is not None and after.seed is not None and before.seed != after.seed
        if before.updates < after.updates and (counts_differ or is_older or is_other):
            raise ValueError(
                f'{before.path} (update {before.updates}, iteration {start}, seed {before.seed}, launched '
                f'{before.launch}) and {after.path} (update {after.updates}, iteration {end}, seed {after.seed}, '
                f'launched {after.launch}) are not of one run: move the files of one of them away')
