"""Keeping snapshots of a run's averages for the time after the training."""

import logging
import shutil
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Optional, Union

import mmengine
from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook as MMEngineEMAHook
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseAveragedModel
from mmengine.runner import Runner
from rich.filesize import decimal
from torch import Tensor

from mmyolo_ema._upstream import has_training_loop, is_made_to_resume
from mmyolo_ema.checkpoint.publication import plain, save
from mmyolo_ema.checkpoint.weights import FURTHER, SNAPSHOTS, single_precision_bytes, updates_in
from mmyolo_ema.ema_config import SECOND_HORIZON
from mmyolo_ema.files import write_new
from mmyolo_ema.hooks.average_record import AverageRecord
from mmyolo_ema.hooks.ema_hook import EMAHook
from mmyolo_ema.hooks.horizon import Horizon
from mmyolo_ema.hooks.optimizer_steps import accumulative_counts
from mmyolo_ema.hooks.resumption import is_resumed
from mmyolo_ema.hooks.run_length import length_of, updates_at_end, updates_per_epoch
from mmyolo_ema.hooks.sharing import whole_on_main
from mmyolo_ema.hooks.stored_average import cpu_copies, synchronize_buffers, whole_state
from mmyolo_ema.models import schedule_of
from mmyolo_ema.models.tensor_references import tensor_references
from mmyolo_ema.printing import printable
from mmyolo_ema.processes import raised_by_all
from mmyolo_ema.registry import HOOKS


@HOOKS.register_module()
class SnapshotHook(Hook):
    """Keeps slim snapshots of all averages of a run, of which others can be made after the training.

    Beside an EMAHook, MMEngine's or this package's. A snapshot is a checkpoint without optimizer and raw weights, in
    float32: ``snapshots/update_00000500.pth`` in the work directory, which tests and loads like any other. The disk
    space that they take is told at the start. ``tools/posthoc_ema.py plan CONFIG`` tells what they are good for.

    A run that resumes puts the snapshots of updates that it makes once more aside, as ``.abandoned``.

    Args:
        interval (int | str): Updates between two snapshots: ``500``, ``'1epoch'``, or ``'2%'`` of the run. The last
            update of a run gets one in any case. Defaults to '1epoch'.
        second_horizon (int | float | str, optional): Horizon of a further average of this package's EMAHook, in the
            same form: it gets the name ``second`` and the main one's gamma. With two of different length, far fewer
            snapshots do. It takes the memory of the model once more. Defaults to None: the run keeps those of the
            EMAHook's ``averages``, if any.

    Raises:
        ValueError: At the start of a run, if it has no EMAHook, or one whose schedule is not known; if an option is
            of another form; if the folder has snapshots of another run.

    Example:
        >>> # in a config
        >>> custom_hooks = [dict(type='mmyolo_ema.EMAHook', ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.0002,
        ...                      update_buffers=True),
        ...                 dict(type='mmyolo_ema.SnapshotHook', interval='5epochs', second_horizon=1000)]
    """

    # After the EMAHooks, MMEngine's too, and before the hook that saves checkpoints.
    priority = 'BELOW_NORMAL'

    def __init__(
        self, interval: Union[int, str] = '1epoch', second_horizon: Union[int, float, str, None] = None
    ) -> None:
        self.interval, self.second_horizon = interval, second_horizon
        #: The further averages that the EMAHook makes for this hook, by name.
        self.further_horizons = {} if second_horizon is None else {SECOND_HORIZON: Horizon(second_horizon)}
        # What MMEngine's hook does not say of its average.
        self._own_record: Optional[AverageRecord] = None
        self._folder: Optional[Path] = None
        self._updates = self._written = 0
        self._runner: Callable[[], Optional[Runner]] = lambda: None

    def before_run(self, runner: Runner) -> None:
        """Looks at the averages of a run that trains.

        Args:
            runner (Runner): The runner of the training, validation or test.
        """
        if has_training_loop(runner):
            with raised_by_all():
                self._start(runner)

    def before_train(self, runner: Runner) -> None:
        """Says how much there will be; puts snapshots aside that will be made again.

        Args:
            runner (Runner): The runner of the training.
        """
        with raised_by_all():
            self._start(runner)
            self._folder = Path(runner.work_dir) / SNAPSHOTS
            self._count_from_average()
            if is_main_process():
                stored = self._stored()
                if stored and not self._updates and not is_made_to_resume(runner):
                    raise ValueError(
                        f'{self._folder} has snapshots of another run, such as {stored[0].name}: move '
                        'them away, choose another work directory, or resume that run'
                    )
                self._put_later_aside(stored)
                self._announce(runner)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict[str, Any]] = None
    ) -> None:
        """Writes a snapshot when one is due.

        Args:
            runner (Runner): The runner of the training.
            batch_idx (int): Index of the batch in the loop.
            data_batch (Any): Not used.
            outputs (dict, optional): Not used.
        """
        updates = int(self._ema.ema_model.steps)
        if updates != self._updates:
            self._updates = updates
            if updates % self._every == 0:
                self._write(runner, runner.iter + 1)

    def after_train(self, runner: Runner) -> None:
        """Writes a snapshot of the last update.

        Args:
            runner (Runner): The runner of the training.
        """
        if self._updates != self._written:
            self._write(runner, runner.iter)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Says which schedules made the average of MMEngine's hook, which does not say so itself.

        Args:
            runner (Runner): The runner of the training.
            checkpoint (dict): What is about to be saved; changed in place.
        """
        if self._own_record is not None:
            checkpoint.setdefault('meta', {}).setdefault('mmyolo_ema', {}).update(self._own_record.as_meta())

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Goes on from a checkpoint that the run is resumed from.

        Args:
            runner (Runner): The runner that loads.
            checkpoint (dict): What it loaded.
        """
        # A runner of strategies loads before it calls before_run.
        if self._runner() is not runner or not is_resumed(runner):
            return
        if self._own_record is not None:
            self._own_record.go_on(checkpoint.get('meta') or {}, updates_in(checkpoint) or 0)
        if self._folder is not None:  # in mid-run
            self._count_from_average()
            if is_main_process():
                self._put_later_aside(self._stored())

    def _start(self, runner: Runner) -> None:
        """Looks at a run; once, so that a validation after the training starts nothing anew."""
        if self._runner() is runner:
            return
        self._runner = weakref.ref(runner)
        self._ema = self._ema_hook(runner)
        counts_steps = isinstance(self._ema, EMAHook)
        if self.second_horizon is not None and not counts_steps:
            raise ValueError(
                f"second_horizon={self.second_horizon!r} is for a further average, which MMEngine's "
                "EMAHook does not keep: take type='mmyolo_ema.EMAHook', with the same options"
            )
        self._own_record = None if counts_steps else AverageRecord(self._ema.ema_model)
        if schedule_of(self._ema.ema_model) is None:
            raise ValueError(
                f'the schedule of {type(self._ema.ema_model).__name__} is not known, so that no other '
                'averages can be made of its snapshots. Derive the class from mmyolo_ema.ExpMomentumEMA, '
                'whose schedule is a property to override.'
            )
        self._iterations = accumulative_counts(runner.optim_wrapper) if counts_steps else 1
        self._per_epoch = updates_per_epoch(runner, self._iterations)
        every = length_of('interval', self.interval, runner, self._ema, self._iterations)
        self._every, self._folder = max(round(every), 1), None

    def _count_from_average(self) -> None:
        self._updates = self._written = int(self._ema.ema_model.steps)

    def _stored(self) -> list[Path]:
        assert self._folder is not None
        return sorted(self._folder.glob('update_*.pth'))

    def _put_later_aside(self, stored: list[Path]) -> None:
        """Puts the snapshots of updates aside that will be made again."""
        for path in stored:
            if path > self._path(self._updates):
                _put_aside(path)

    def _ema_hook(self, runner: Runner) -> MMEngineEMAHook:
        """Returns the hook of the average that is kept."""
        hooks = [hook for hook in runner.hooks if isinstance(hook, MMEngineEMAHook)]
        own = [hook for hook in runner.hooks if isinstance(hook, SnapshotHook)]
        if len(hooks) != 1 or len(own) != 1:
            raise ValueError(
                f'one SnapshotHook keeps snapshots of one EMAHook, but custom_hooks has {len(own)} and '
                f'{len(hooks)} of them'
            )
        if runner.hooks.index(self) < runner.hooks.index(hooks[0]):
            raise ValueError(
                f'the SnapshotHook must come after the EMAHook, but its priority is {self.priority} and '
                f"the EMAHook's is {hooks[0].priority}"
            )
        return hooks[0]

    def _path(self, updates: int) -> Path:
        assert self._folder is not None
        return self._folder / f'update_{updates:08d}.pth'

    @property
    def _further(self) -> dict[str, BaseAveragedModel]:
        return self._ema.averages if isinstance(self._ema, EMAHook) else {}

    def _announce(self, runner: Runner) -> None:
        """Says how many snapshots of which size there will be, and warns if the disk has no room for them."""
        last = updates_at_end(runner, self._ema, self._iterations)
        count = last // self._every - self._updates // self._every + (last % self._every > 0)
        size = single_precision_bytes(self._ema.ema_model.module.state_dict()) * (1 + len(self._further))
        averages = f'{1 + len(self._further)} averages' if self._further else 'the average'
        _say(
            f'{count} files with {averages}, {decimal(size)} each, one every {self._every:,} updates: '
            f'{decimal(count * size)} in {self._folder}'
        )
        free = shutil.disk_usage(runner.work_dir).free
        if free < count * size:
            _say(f'the disk of {runner.work_dir} has {decimal(free)} left, too few', logging.WARNING)

    def _write(self, runner: Runner, iteration: int) -> None:
        """Writes a snapshot, from the main process. A full disk ends no training."""
        averages = self._ema.ema_model, *self._further.values()
        for average in averages:
            synchronize_buffers(average)
        self._written = self._updates
        with whole_on_main(averages):
            if not is_main_process():
                return
            state = _slim(self._ema.ema_model.module.state_dict())
            further = {name: _slim(whole_state(average)) for name, average in self._further.items()}
        content = dict(meta=self._meta(runner, iteration), state_dict=state, **({FURTHER: further} if further else {}))
        try:
            write_new(self._path(self._updates), partial(save, content))
        except OSError as error:
            _say(f'that of update {self._updates:,} could not be written: {error}', logging.WARNING)

    def _meta(self, runner: Runner, iteration: int) -> dict[str, Any]:
        """Returns what MMEngine's checkpoints say of their run, and what this package's tools ask for."""
        about = self._own_record.as_meta() if self._own_record else self._ema.describe()
        return plain(
            dict(
                epoch=runner.epoch,
                iter=iteration,
                cfg=runner.cfg.pretty_text,
                seed=runner.seed,
                experiment_name=runner.experiment_name,
                time=time.strftime('%Y%m%d_%H%M%S'),
                mmengine_version=mmengine.__version__,
                dataset_meta=getattr(runner.train_dataloader.dataset, 'metainfo', None),
                mmyolo_ema=dict(
                    about,
                    updates_per_epoch=self._per_epoch,
                    weights='ema',
                    updates=self._updates,
                    buffers=[
                        name
                        for name, reference in tensor_references(self._ema.ema_model.module)
                        if not reference.is_parameter
                    ],
                ),
            )
        )


def _put_aside(path: Path) -> None:
    """Renames a file to what no earlier one is called."""
    number = len(list(path.parent.glob(f'{path.stem}*.abandoned')))
    path.rename(path.with_name(f'{path.stem}{f".{number}" if number else ""}.abandoned'))


def _slim(state: dict[str, Any]) -> dict[str, Any]:
    """Returns copies in single precision; names that share a tensor share its copy."""
    copies = cpu_copies(state)
    single = {
        id(value): value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
        for value in copies.values()
    }
    return {name: single[id(value)] for name, value in copies.items()}


def _say(message: str, level: int = logging.INFO) -> None:
    print_log(f'EMA snapshots: {printable(message)}', logger='current', level=level)
