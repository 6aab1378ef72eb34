"""What a run has stored: averages that it kept, and what another average is made of."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple, Optional, Union, cast

from mmyolo_ema.posthoc.fit import fit
from mmyolo_ema.posthoc.gram import Snapshot
from mmyolo_ema.posthoc.reconstruction import Reconstruction
from mmyolo_ema.posthoc.targets import Target, target
from mmyolo_ema.schedules import Constant, Repeated, Schedule

#: The schedule of the raw weights.
RAW_SCHEDULE = Constant(1.0)


def repeated(snapshot: Snapshot, times: int) -> Snapshot:
    """Returns the snapshot of tensors that are averaged so many times in an update; raw weights are as they were."""
    if snapshot.schedule == RAW_SCHEDULE or times == 1:
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
        further: That of each further average, by its name.
        update_buffers: Whether floating buffers are averaged too.
        copied: Tensors that the files say are not averaged, but copied from the model at each update.
        once: Whether a tensor under several names was averaged once; otherwise once for each of its names.
        firsts: For each name of a tensor, the first of its names.
        updates_per_epoch: Number of updates in an epoch, None if the files do not say.
        left_out: Files that are not used, and why: they hold no average, or none that another file does not hold too,
            or are no checkpoints.
    """

    files: list[SnapshotFile]
    schedule: Schedule
    further: dict[str, Schedule]
    update_buffers: bool
    copied: frozenset[str]
    once: bool
    firsts: dict[str, str]
    updates_per_epoch: Optional[float]
    left_out: dict[Path, str]

    def average(self, wanted: Union[str, float, Target]) -> Reconstruction:
        """Finds how another average is made of what is stored. Reads no tensors.

        Args:
            wanted: A horizon in updates, such as 500; a text that :func:`mmyolo_ema.posthoc.targets.target` reads, such
                as ``'2epochs'``, ``'4%'``, ``'last:10epochs'`` or ``'power:0.05'``; or a target of any schedule.

        Raises:
            ValueError: If the text is of another form, or the horizon is longer than the run.

        Example: See :func:`mmyolo_ema.posthoc.read_run`.
        """
        if not isinstance(wanted, Target):
            wanted = target(str(wanted), self.schedule, self.updates, self.updates_per_epoch)
        return Reconstruction(
            self,
            wanted,
            {count: fit(self.snapshots(count), wanted.schedule, self.updates) for count in self.multiplicities},
        )

    @property
    def sources(self) -> list[tuple[SnapshotFile, str]]:
        """Where the snapshots are: files and kinds of weights."""
        return [(file, kind) for kind in ('ema', 'raw', *self.further) for file in self.files if kind in file.kinds]

    def snapshots(self, multiplicity: int = 1) -> list[Snapshot]:
        """Returns what is at :attr:`sources`, for tensors with so many names. Defaults to 1."""
        schedules = dict(self.further, ema=self.schedule, raw=RAW_SCHEDULE)
        stored = [Snapshot(schedules[kind], file.updates) for file, kind in self.sources]
        return stored if self.once else [repeated(snapshot, multiplicity) for snapshot in stored]

    @property
    def second(self) -> Optional[Schedule]:
        """The older name of ``further.get('second')``."""
        return self.further.get('second')

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
