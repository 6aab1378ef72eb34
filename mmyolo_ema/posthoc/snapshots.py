"""The averages that the checkpoints of a run hold, and the schedules that they were made with."""

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from mmyolo_ema.checkpoint import has_ema, raw_weights, read, updates_in
from mmyolo_ema.checkpoint.weights import averaged_weights, first_names
from mmyolo_ema.ema_config import averages_by_name, schedule_of, stored_hook
from mmyolo_ema.posthoc.fit import Snapshot
from mmyolo_ema.schedule import Constant, Repeated, Schedule

__all__ = ['RAW', 'SnapshotFile', 'StoredRun', 'read_run']

#: The schedule of the raw weights.
RAW = Constant(1.0)


class SnapshotFile(NamedTuple):
    """A checkpoint of a run, and how many updates its average had."""

    path: Path
    updates: int


class StoredRun(NamedTuple):
    """The checkpoints of a run.

    Attributes:
        files: The checkpoints in the order of their updates, one for each number of updates.
        schedule: The momentum of each update of the average.
        update_buffers: Whether floating buffers are averaged too.
        once: Whether a tensor under several names was averaged once; otherwise once for each of its names.
        multiplicity: Number of names of each tensor, by its first name.
        updates_per_epoch: Number of updates in an epoch, None if the files do not say.
        left_out: Files that hold no average, or one that another file holds too.
    """

    files: list[SnapshotFile]
    schedule: Schedule
    update_buffers: bool
    once: bool
    multiplicity: dict[str, int]
    updates_per_epoch: Optional[float]
    left_out: list[Path]

    @property
    def snapshots(self) -> list[Snapshot]:
        """The averages of the files, and then their raw weights: tracks 0 and 1."""
        return [Snapshot(track, file.updates) for track in (0, 1) for file in self.files]

    @property
    def multiplicities(self) -> list[int]:
        """How many names the tensors have that are averaged differently: 1 if that makes no difference."""
        return sorted(set(self.multiplicity.values()))

    def tracks(self, multiplicity: int) -> list[Schedule]:
        """The schedules of the average and of the raw weights, for tensors with so many names."""
        return [self.schedule if self.once else Repeated(self.schedule, multiplicity), RAW]

    @property
    def updates(self) -> int:
        """Number of updates in the newest file."""
        return self.files[-1].updates


def read_run(work_dir: Union[str, Path]) -> StoredRun:
    """Finds the checkpoints of a run.

    Reads no tensors.

    Args:
        work_dir: Folder of a run with MMEngine's EMAHook or this package's.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no checkpoints with an average; if one is cut off; if the schedule of the average is not
            known, or not the same in all; if they hold other tensors; if they are of several runs.
    """
    work_dir = Path(work_dir)
    if not work_dir.is_dir():
        raise FileNotFoundError(f'there is no folder {work_dir}')
    told: dict[Path, dict[str, Any]] = {}
    left_out = []
    for path in sorted(work_dir.glob('[!.]*.pth')):
        content = read(path, mmap=True)
        if has_ema(content):
            told[path] = _told(path, content)
        else:
            left_out.append(path)
    if not told:
        raise ValueError(f'{work_dir} has no checkpoints with an average')
    _check_same(told)
    files: list[SnapshotFile] = []
    for path in sorted(told, key=lambda path: (told[path]['updates'], path)):
        if files and told[path]['updates'] == files[-1].updates:
            left_out.append(path)
        else:
            files.append(SnapshotFile(path, told[path]['updates']))
    first = told[files[0].path]
    hook = first['hook']
    return StoredRun(
        files=files,
        schedule=first['schedule'],
        update_buffers=hook.get('update_buffers') is True,
        once=not averages_by_name(hook),
        multiplicity=first['multiplicity'],
        updates_per_epoch=_updates_per_epoch(told[files[-1].path]),
        left_out=left_out)


def _updates_per_epoch(newest: dict[str, Any]) -> Optional[float]:
    epoch = newest['epoch']
    return newest['updates'] / epoch if isinstance(epoch, int) and epoch > 0 else None


def _told(path: Path, content: dict) -> dict[str, Any]:
    """Returns what a checkpoint says about its average."""
    meta = content.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    try:
        hook = stored_hook(meta)
        schedule = schedule_of(hook) if hook else None
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    updates = updates_in(content)
    if schedule is None:
        raise ValueError(f'{path} does not hold the config of its run, which tells the schedule of the average')
    if not updates:
        raise ValueError(f'{path} does not say how many updates its average had, or had none')
    averaged, raw = averaged_weights(content), raw_weights(content)
    return dict(
        hook=hook,
        updates=updates,
        iteration=meta.get('iter'),
        epoch=meta.get('epoch'),
        schedule=schedule,
        shapes={name: getattr(value, 'shape', None) for name, value in averaged.items()},
        # The raw weights tell what the model shares.
        multiplicity=dict(Counter(first_names(raw).values())))


def _check_same(told: dict[Path, dict[str, Any]]) -> None:
    (first, one), *others = told.items()
    for path, other in others:
        if other['schedule'] != one['schedule']:
            raise ValueError(f'the schedule of the average changed between {first} ({one["schedule"]}) and {path} '
                             f'({other["schedule"]})')
        if other['shapes'] != one['shapes']:
            differing = [name for name in {**one['shapes'], **other['shapes']}
                         if one['shapes'].get(name) != other['shapes'].get(name)]
            raise ValueError(f'{first} and {path} do not hold the same tensors: {", ".join(differing[:3])}')
    in_order = sorted(told.items(), key=lambda item: item[1]['updates'])
    for (earlier, before), (later, after) in pairwise(in_order):
        start, end = before['iteration'], after['iteration']
        # An update takes an iteration at least; a run that was started anew counts both from 0 again.
        if isinstance(start, int) and isinstance(end, int) and end - start < after['updates'] - before['updates']:
            raise ValueError(f'{earlier} (update {before["updates"]}, iteration {start}) and {later} (update '
                             f'{after["updates"]}, iteration {end}) are not of one run')
