"""Finding the averages that the checkpoints of a run hold, and the schedules that they were made with."""

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

from torch import Tensor

from mmyolo_ema.checkpoint import (
    ForeignFile,
    averaged_weights,
    has_ema,
    listed,
    raw_weights,
    read,
    updates_in,
    weights_in,
)
from mmyolo_ema.checkpoint.stored_schedule import stored_segments
from mmyolo_ema.checkpoint.streaming import fingerprint, stream
from mmyolo_ema.checkpoint.weights import SNAPSHOTS, first_names, further_averages, origin
from mmyolo_ema.ema_config import averages_by_name, stored_hook
from mmyolo_ema.posthoc.run import SnapshotFile, StoredRun
from mmyolo_ema.schedules import MOST_UPDATES, Schedule
from mmyolo_ema.schedules.history import schedule_from, until

# MMEngine ends the name of an experiment with the time when it was launched.
_LAUNCH = re.compile(r'_(\d{8}_\d{6})$')


def read_run(work_dir: Union[str, Path]) -> StoredRun:
    """Finds the checkpoints of a run, and what a SnapshotHook kept of it.

    Reads no tensors, but for those of one file where the average is of a class that averages a shared tensor once for
    each of its names: a file written from a GPU holds it as so many copies.

    Args:
        work_dir: Folder of a run with MMEngine's EMAHook or this package's.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it has no checkpoints with an average; if one is truncated; if the schedule of the average is not
            known, or not the same in all; if they hold or average other tensors; if they are of several runs.

    Example:
        The weight of this run is the number of the update, so that of an average is the mean of these numbers.

        >>> import tempfile, torch
        >>> from mmyolo_ema import ExpMomentumEMA
        >>> folder, model = Path(tempfile.mkdtemp()), torch.nn.Linear(1, 1, bias=False)
        >>> ema = ExpMomentumEMA(model, momentum=0.1, gamma=5)
        >>> hook = dict(type='EMAHook', ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.1, gamma=5)
        >>> for update in range(1, 101):
        ...     _ = model.weight.data.fill_(update)
        ...     ema.update_parameters(model)
        ...     if update % 5 == 0:
        ...         torch.save(dict(meta=dict(cfg=f'custom_hooks = [{hook}]'), state_dict=ema.module.state_dict(),
        ...                         ema_state_dict={'steps': ema.steps, 'module.weight': model.weight.data}),
        ...                    folder / f'{update}.pth')
        >>> average = read_run(folder).average(20)
        >>> round(average.error, 3), round(average.worst.mean_age, 1)
        (0.052, 18.8)
        >>> average.write(folder / 'average.pth')
        >>> round(float(torch.load(folder / 'average.pth')['state_dict']['weight']), 1)
        81.2
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
            record = _record(path, read(path, mmap=True), is_slim=path.parent != work_dir)
        except ForeignFile as error:
            left_out[path] = str(error).removeprefix(f'{path} ')
            continue
        if record:
            records.append(record)
        else:
            left_out[path] = 'no average of a run'
    if not records:
        raise ValueError(
            f'{work_dir} has no checkpoints with an average'
            + listed('; not used: ', [f'{path.name} ({why})' for path, why in left_out.items()])
        )
    # Of two files of one update the one that has more: a full checkpoint before a slim snapshot.
    records.sort(key=lambda record: (record.updates, 'raw' not in record.kinds))
    _check_same(records)
    _check_succession(records)
    files: list[SnapshotFile] = []
    for record in records:
        stored = {kind for file in files if file.updates == record.updates for kind in file.kinds}
        kinds = tuple(kind for kind in record.kinds if kind not in stored)
        if kinds:
            files.append(SnapshotFile(record.path, record.updates, kinds))
        if record.other or not kinds:
            left_out[record.path] = record.other or 'another file holds that of the same update'
    newest = records[-1]
    return StoredRun(
        files=files,
        schedule=newest.schedules['ema'],
        further={kind: schedule for record in records for kind, schedule in record.schedules.items() if kind != 'ema'},
        update_buffers=newest.averaging.update_buffers,
        copied=newest.averaging.excluded.union([] if newest.averaging.update_buffers else newest.buffers),
        once=not newest.averaging.by_name,
        firsts=_shared_names(files[-1].path, by_content=newest.averaging.by_name),
        updates_per_epoch=_updates_per_epoch(records),
        left_out=left_out,
    )


class _Averaging(NamedTuple):
    """What must be the same of averages so that one can be made of them, besides the schedule."""

    update_buffers: bool
    by_name: bool
    excluded: frozenset[str]
    #: Excluded until a resume, so that the schedule is not theirs.
    late: frozenset[str]

    def __str__(self) -> str:
        by_name = ', shared tensors once for each name' if self.by_name else ''
        return (
            f'update_buffers={self.update_buffers}{by_name}'
            + listed(', not averaged: ', sorted(self.excluded))
            + listed(', averaged from a resume on: ', sorted(self.late))
        )


class _Record(NamedTuple):
    """What a checkpoint says about its averages; ``other`` tells of those that are averaged in another way."""

    path: Path
    kinds: tuple[str, ...]
    meta: dict[str, Any]
    averaging: _Averaging
    buffers: list[str]
    updates: int
    schedules: dict[str, Schedule]
    updates_per_epoch: Optional[float]
    shapes: dict[str, Any]
    other: str

    @property
    def launch(self) -> Optional[str]:
        launched = _LAUNCH.search(str(self.meta['experiment_name']))
        return launched and launched[1]


def _updates_per_epoch(records: list[_Record]) -> Optional[float]:
    """Returns the number of updates in an epoch if a SnapshotHook stored it, or all checkpoints agree about it."""
    for record in records:
        if record.updates_per_epoch:
            return record.updates_per_epoch
    lengths = set()
    for before, after in pairwise(records):
        start, end = before.meta['epoch'], after.meta['epoch']
        if after.updates > before.updates and isinstance(start, int) and isinstance(end, int):
            # Saved by iterations, the epoch is that which ended before, or the same.
            lengths.add((after.updates - before.updates) / (end - start) if end > start else None)
    return lengths.pop() if len(lengths) == 1 else None


def _record(path: Path, content: dict[str, Any], is_slim: bool) -> Optional[_Record]:
    """Returns what a file says; None if it is no snapshot of a run, or of before the first update."""
    own, updates = origin(content), updates_in(content)
    # Elsewhere, an average alone was extracted, and maybe in another precision; or made of snapshots.
    has_average = has_ema(content) or (is_slim and own.get('weights') == 'ema')
    if not has_average or updates == 0:
        return None
    meta = content['meta'] if isinstance(content.get('meta'), dict) else {}
    try:
        averagings, schedules = _averagings(content, meta)
        buffers = _names(own, 'buffers')
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    if not updates:
        raise ValueError(f'{path} does not say how many updates its average had, from 1 to {MOST_UPDATES:,}')
    per_epoch = own.get('updates_per_epoch')
    if per_epoch is not None and not (isinstance(per_epoch, (int, float)) and 0 < per_epoch < math.inf):
        raise ValueError(f'{path}: updates_per_epoch must be a number above 0, but is {per_epoch!r:.80}')
    # A file may lack BatchNorm's counts, as for every loader.
    shapes = {
        name: getattr(value, 'shape', None)
        for name, value in averaged_weights(content).items()
        if not name.endswith('num_batches_tracked')
    }
    return _Record(
        path,
        tuple(kind for kind in weights_in(content) if kind == 'raw' or kind in schedules),
        {key: meta.get(key) for key in ('iter', 'epoch', 'seed', 'experiment_name')},
        averagings['ema'],
        buffers,
        updates,
        schedules,
        per_epoch,
        shapes,
        listed(
            'only averages that are not averaged as the main one: ',
            [f'{kind} ({averaging})' for kind, averaging in averagings.items() if kind not in schedules],
        ),
    )


def _averagings(content: dict[str, Any], meta: dict[str, Any]) -> tuple[dict[str, _Averaging], dict[str, Schedule]]:
    """Returns how the averages of a file were averaged, and the schedules of those that were as the main one."""
    own = origin(content)
    # For files that do not say it themselves.
    hook = {} if 'averages_by_name' in own else stored_hook(meta)
    if not (hook or 'averages_by_name' in own):
        raise ValueError('it does not hold the config of its run, which has the schedule of the average')
    usual = {'update_buffers': hook.get('update_buffers'), 'averages_by_name': averages_by_name(hook)}
    averagings, schedules = {}, {}
    for kind in ('ema', *further_averages(content)):
        said = {**usual, **origin(content, kind)}
        averagings[kind] = _Averaging(
            said['update_buffers'] is True,
            said['averages_by_name'] is True,
            *(frozenset(_names(said, key)) for key in ('excluded', 'averaged_from')),
        )
        if averagings[kind] == averagings['ema']:
            schedules[kind] = schedule_from(stored_segments(meta if kind == 'ema' else dict(mmyolo_ema=said)))
    if averagings['ema'].late:
        raise ValueError(
            'no other average can be made of a file whose schedule is not that of all its tensors'
            + listed('. Averaged from a resume on only: ', sorted(averagings['ema'].late))
            + '. Move it away'
        )
    return averagings, schedules


def _names(said: dict[str, Any], key: str) -> list[str]:
    names = said.get(key) or []
    if not isinstance(names, (list, tuple, dict)):
        raise ValueError(f'the names of its {key} must be a list, but are {names!r:.80}')
    return list(map(str, names))


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


def _check_same(records: list[_Record]) -> None:
    """Raises unless all files hold the same averages of the same tensors."""
    newest, latest = records[-1], {kind: record for record in records for kind in record.schedules}
    for record in records:
        for kind, schedule in record.schedules.items():
            last, name = latest[kind], '' if kind == 'ema' else f' {kind!r}'
            if until(schedule, record.updates) != until(last.schedules[kind], record.updates):
                raise ValueError(
                    f'the schedule of the average{name} changed between {record.path} ({schedule}) and '
                    f'{last.path} ({last.schedules[kind]}), which does not say when'
                )
        if record.averaging != newest.averaging:
            differing = sorted(record.averaging.excluded ^ newest.averaging.excluded)
            raise ValueError(
                f'{record.path} and {newest.path} were averaged in different ways: {record.averaging} and '
                f'{newest.averaging}'
                + listed('. Averaged in one of them only: ', differing)
                + '. Move the files of one of them away'
            )
        if record.shapes != newest.shapes:
            differing = [
                name
                for name in {**newest.shapes, **record.shapes}
                if newest.shapes.get(name) != record.shapes.get(name)
            ]
            raise ValueError(
                f'{newest.path} and {record.path} do not hold the same tensors: {", ".join(differing[:3])}'
            )


def _check_succession(records: list[_Record]) -> None:
    """Raises unless each file is a later one of the same run."""
    for before, after in pairwise(records):
        start, end = before.meta['iter'], after.meta['iter']
        # An update takes an iteration at least; a run that was started anew counts both from 0 again.
        counts_differ = isinstance(start, int) and isinstance(end, int) and end - start < after.updates - before.updates
        # One that was started anew in the same folder wrote over the first files of the one before.
        is_older = before.launch and after.launch and after.launch < before.launch
        # A run that resumes goes on with its seed.
        seeds = [seed if isinstance(seed, int) else None for seed in (before.meta['seed'], after.meta['seed'])]
        is_other = None not in seeds and seeds[0] != seeds[1]
        if before.updates < after.updates and (counts_differ or is_older or is_other):
            raise ValueError(
                f'{before.path} (update {before.updates}, iteration {start}, seed {seeds[0]}, launched '
                f'{before.launch}) and {after.path} (update {after.updates}, iteration {end}, seed {seeds[1]}, '
                f'launched {after.launch}) are not of one run: move the files of one of them away'
            )
