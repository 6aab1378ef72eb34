"""Keeping snapshots of an average for the time after the training."""

import logging
import shutil
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Optional, Union

import mmengine
from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook as MMEngineEMAHook
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseAveragedModel
from mmengine.registry import MODELS
from mmengine.runner import Runner
from rich.filesize import decimal
from torch import Tensor

from mmyolo_ema._upstream import has_training_loop, is_made_to_resume
from mmyolo_ema.checkpoint.publication import plain, save
from mmyolo_ema.checkpoint.stored_schedule import second_segments
from mmyolo_ema.checkpoint.weights import SECOND, SNAPSHOTS, origin, single_precision_bytes, updates_in
from mmyolo_ema.files import write_new
from mmyolo_ema.hooks.average_record import AverageRecord
from mmyolo_ema.hooks.ema_hook import EMAHook, is_saved_after_iteration
from mmyolo_ema.hooks.kept_buffers import unchanged
from mmyolo_ema.hooks.optimizer_steps import accumulative_counts
from mmyolo_ema.hooks.resumption import is_resumed
from mmyolo_ema.hooks.run_length import updates_at_end, updates_of_run, updates_per_epoch
from mmyolo_ema.hooks.sharing import share_out
from mmyolo_ema.hooks.stored_average import cpu_copies, synchronize_buffers
from mmyolo_ema.models import schedule_of
from mmyolo_ema.printing import printable
from mmyolo_ema.processes import raised_by_all
from mmyolo_ema.registry import HOOKS
from mmyolo_ema.schedules import in_updates
from mmyolo_ema.schedules.history import Segments, as_data, continued

__all__ = ['SnapshotHook']


@HOOKS.register_module()
class SnapshotHook(Hook):
    """Keeps slim snapshots of a run's average, of which others can be made after the training.

    Beside an EMAHook, MMEngine's or this package's. A snapshot is a checkpoint without optimizer and raw weights, in
    float32: ``snapshots/update_00000500.pth`` in the work directory, which tests and loads like any other. The disk
    space that they take is told at the start. ``tools/posthoc_ema.py plan CONFIG`` tells what they are good for.

    A run that resumes puts the snapshots of updates that it makes once more aside, as ``.abandoned``.

    Args:
        interval (int | str): Updates between two snapshots: ``500``, ``'1epoch'``, or ``'2%'`` of the run. The last
            update of a run gets one in any case. Defaults to '1epoch'.
        second_horizon (int | float | str, optional): Horizon of a second average that is kept beside the first, in the
            same form: with two of different length, far fewer snapshots do. It takes the memory of the model once
            more. Defaults to None: there is none.

    Raises:
        ValueError: At the start of a run, if it has no EMAHook, or one whose schedule is not known; if an option is
            of another form; if the folder has snapshots of another run; if a run resumes from a checkpoint without
            its second average.

    Example:
        >>> # in a config
        >>> custom_hooks = [dict(type='mmyolo_ema.EMAHook', ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.0002,
        ...                      update_buffers=True),
        ...                 dict(type='mmyolo_ema.SnapshotHook', interval='5epochs', second_horizon=1000)]
    """

    # After the EMAHooks, MMEngine's too, and before the hook that saves checkpoints.
    priority = 'BELOW_NORMAL'

    def __init__(self, interval: Union[int, str] = '1epoch',
                 second_horizon: Union[int, float, str, None] = None) -> None:
        self.interval, self.second_horizon = interval, second_horizon
        self._second: Optional[BaseAveragedModel] = None
        self._second_segments: Segments = ()
        # What MMEngine's hook does not say of its average.
        self._own_record: Optional[AverageRecord] = None
        self._resumed_from: Optional[dict[str, Any]] = None
        self._folder: Optional[Path] = None
        self._updates = self._written = 0
        self._runner: Callable[[], Optional[Runner]] = lambda: None

    def before_run(self, runner: Runner) -> None:
        """Makes the second average of a run that trains.

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
                    raise ValueError(f'{self._folder} has snapshots of another run, such as {stored[0].name}: move '
                                     'them away, choose another work directory, or resume that run')
                self._put_later_aside(stored)
                self._announce(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Shares the second average out among the processes if the first one is.

        Args:
            runner (Runner): The runner of the training.
            batch_idx (int): Not used.
            data_batch (Any): Not used.
        """
        if self._second is not None:
            share_out([self._second], self._ema.src_model)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: Optional[dict[str, Any]] = None) -> None:
        """Updates the second average with the first, and writes a snapshot when one is due.

        Args:
            runner (Runner): The runner of the training.
            batch_idx (int): Index of the batch in the loop.
            data_batch (Any): Not used.
            outputs (dict, optional): Not used.
        """
        updates = int(self._ema.ema_model.steps)
        if updates != self._updates:
            self._updates = updates
            if self._second is not None:
                with unchanged(self._second.module, getattr(self._ema, 'kept_buffers', [])):
                    self._second.update_parameters(self._ema.src_model)
            if updates % self._every == 0:
                self._write(runner, runner.iter + 1)
        if self._second is not None and is_saved_after_iteration(runner):
            synchronize_buffers(self._second)

    def after_train_epoch(self, runner: Runner) -> None:
        """Prepares the second average for a checkpoint.

        Args:
            runner (Runner): The runner of the training.
        """
        if self._second is not None:
            synchronize_buffers(self._second)

    def after_train(self, runner: Runner) -> None:
        """Writes a snapshot of the last update.

        Args:
            runner (Runner): The runner of the training.
        """
        if self._updates != self._written:
            self._write(runner, runner.iter)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Adds the second average, so that it goes on when the run is resumed, and says which schedules made both.

        Args:
            runner (Runner): The runner of the training.
            checkpoint (dict): What is about to be saved; changed in place.
        """
        said = checkpoint.setdefault('meta', {}).setdefault('mmyolo_ema', {})
        if self._own_record is not None:
            said.update(self._own_record.as_meta())
        if self._second is not None:
            checkpoint[SECOND] = cpu_copies(self._second.state_dict())
            said.update(self._about_second())

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Takes the second average from a checkpoint that the run is resumed from.

        Args:
            runner (Runner): The runner that loads.
            checkpoint (dict): What it loaded.

        Raises:
            ValueError: If it does not hold it.
        """
        if not is_resumed(runner):
            return
        if self._runner() is not runner:  # a runner of strategies loads before it calls before_run
            self._resumed_from = {key: checkpoint[key] for key in (SECOND, 'meta') if key in checkpoint}
            return
        if self._own_record is not None:
            self._own_record.go_on(checkpoint.get('meta') or {}, updates_in(checkpoint) or 0)
        if self._second is not None:
            self._load_second(checkpoint)
        if self._folder is not None:  # in mid-run
            self._count_from_average()
            if is_main_process():
                self._put_later_aside(self._stored())

    def _start(self, runner: Runner) -> None:
        """Makes the second average; once, so that a validation after the training starts nothing anew."""
        if self._runner() is runner:
            return
        self._runner = weakref.ref(runner)
        self._ema = self._ema_hook(runner)
        counts_steps = isinstance(self._ema, EMAHook)
        self._own_record = None if counts_steps else AverageRecord(self._ema.ema_model)
        schedule = schedule_of(self._ema.ema_model)
        if schedule is None:
            raise ValueError(f'the schedule of {type(self._ema.ema_model).__name__} is not known, so that no other '
                             'averages can be made of its snapshots. Derive the class from mmyolo_ema.ExpMomentumEMA, '
                             'whose schedule is a property to override.')
        self._iterations = accumulative_counts(runner.optim_wrapper) if counts_steps else 1
        self._per_epoch = updates_per_epoch(runner, self._iterations)
        in_all = updates_of_run(runner, self._ema, self._iterations)
        self._every = max(round(self._in_updates('interval', in_all)), 1)
        if self.second_horizon is not None:
            horizon = self._in_updates('second_horizon', in_all)
            self._second_momentum = 1 / horizon
            if horizon > 1 and hasattr(self._ema.ema_model, 'momentum'):
                self._second = MODELS.build(dict(self._ema.ema_cfg, momentum=self._second_momentum),
                                            default_args=dict(model=self._ema.src_model))
            second = self._second and schedule_of(self._second)
            if second is None or second == schedule:
                raise ValueError(f'second_horizon={self.second_horizon!r} is {horizon:g} updates for an average with '
                                 f'the schedule {schedule}: it needs one with a momentum, and more than 1 update')
            self._second_segments = ((0, second), )
            if self._resumed_from is not None:
                self._load_second(self._resumed_from)
        self._resumed_from = self._folder = None

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

    def _load_second(self, checkpoint: dict[str, Any]) -> None:
        assert self._second is not None
        stored = origin(checkpoint).get('second_momentum') if SECOND in checkpoint else None
        if stored != self._second_momentum:
            found = 'none' if stored is None else f'one of {1 / stored:g}'
            raise ValueError(f'the run has a second average with a horizon of {1 / self._second_momentum:g} updates, '
                             f'but the checkpoint to resume from holds {found}. Set second_horizon of the SnapshotHook '
                             'as it was, or leave it out.')
        self._second.load_state_dict(checkpoint[SECOND])
        if hasattr(self._second, 'gamma'):  # that of the checkpoint too, where the hook was given a mean age
            self._second.gamma = self._ema.ema_model.gamma
        past: Segments = ((0, None),)
        with suppress(ValueError):
            past = second_segments(checkpoint.get('meta') or {})
        self._second_segments = continued(past, int(self._second.steps), schedule_of(self._second))

    def _in_updates(self, option: str, in_all: int) -> float:
        value = getattr(self, option)
        try:
            return in_updates(str(value), in_all, self._per_epoch)
        except ValueError as error:
            raise ValueError(f'{option}={value!r} of the SnapshotHook: {error}') from error

    def _ema_hook(self, runner: Runner) -> MMEngineEMAHook:
        """Returns the hook of the average that is kept."""
        found = [hook for hook in runner.hooks if isinstance(hook, MMEngineEMAHook)]
        own = [hook for hook in runner.hooks if isinstance(hook, SnapshotHook)]
        if len(found) != 1 or len(own) != 1:
            raise ValueError(f'one SnapshotHook keeps snapshots of one EMAHook, but custom_hooks has {len(own)} and '
                             f'{len(found)} of them')
        if runner.hooks.index(self) < runner.hooks.index(found[0]):
            raise ValueError(f'the SnapshotHook must come after the EMAHook, but its priority is {self.priority} and '
                             f"the EMAHook's is {found[0].priority}")
        return found[0]

    def _path(self, updates: int) -> Path:
        assert self._folder is not None
        return self._folder / f'update_{updates:08d}.pth'

    def _about_second(self) -> dict[str, Any]:
        second = {} if self._second is None else dict(
            second_momentum=self._second_momentum,
            second_schedule=as_data(self._second_segments, int(self._second.steps)))
        return dict(second, updates_per_epoch=self._per_epoch)

    def _announce(self, runner: Runner) -> None:
        """Says how many snapshots of which size there will be, and warns if the disk has no room for them."""
        last = updates_at_end(runner, self._ema, self._iterations)
        count = last // self._every - self._updates // self._every + (last % self._every > 0)
        size = single_precision_bytes(self._ema.ema_model.module.state_dict()) * (1 if self._second is None else 2)
        averages = 'the average' if self._second is None else 'both averages'
        _say(f'{count} of {averages}, {decimal(size)} each, one every {self._every:,} updates: {decimal(count * size)} '
             f'in {self._folder}')
        free = shutil.disk_usage(runner.work_dir).free
        if free < count * size:
            _say(f'the disk of {runner.work_dir} has {decimal(free)} left, too few', logging.WARNING)

    def _write(self, runner: Runner, iteration: int) -> None:
        """Writes a snapshot, from the main process. A full disk ends no training."""
        averages = [self._ema.ema_model, *([] if self._second is None else [self._second])]
        for average in averages:
            synchronize_buffers(average)
        self._written = self._updates
        if not is_main_process():
            return
        content = dict(meta=self._meta(runner, iteration), state_dict=_slim(self._ema.ema_model.module.state_dict()))
        if self._second is not None:
            content[SECOND] = _slim(self._second.state_dict())
        try:
            write_new(self._path(self._updates), partial(save, content))
        except OSError as error:
            _say(f'that of update {self._updates:,} could not be written: {error}', logging.WARNING)

    def _meta(self, runner: Runner, iteration: int) -> dict[str, Any]:
        """Returns what MMEngine's checkpoints say of their run, and what this package's tools ask for."""
        record = self._ema.record if isinstance(self._ema, EMAHook) else self._own_record
        about_first = record.as_meta() if record else {}
        return plain(dict(
            epoch=runner.epoch,
            iter=iteration,
            cfg=runner.cfg.pretty_text,
            seed=runner.seed,
            experiment_name=runner.experiment_name,
            time=time.strftime('%Y%m%d_%H%M%S'),
            mmengine_version=mmengine.__version__,
            dataset_meta=getattr(runner.train_dataloader.dataset, 'metainfo', None),
            mmyolo_ema=dict(about_first, **self._about_second(), weights='ema', updates=self._updates,
                            buffers=[name for name, _ in self._ema.src_model.named_buffers()])))


def _put_aside(path: Path) -> None:
    """Renames a file to what no earlier one is called."""
    number = len(list(path.parent.glob(f'{path.stem}*.abandoned')))
    path.rename(path.with_name(f'{path.stem}{f".{number}" if number else ""}.abandoned'))


def _slim(state: dict[str, Any]) -> dict[str, Any]:
    """Returns copies in single precision; names that share a tensor share its copy."""
    copies = cpu_copies(state)
    single = {id(value): value.float() if isinstance(value, Tensor) and value.is_floating_point() else value
              for value in copies.values()}
    return {name: single[id(value)] for name, value in copies.items()}


def _say(message: str, level: int = logging.INFO) -> None:
    print_log(f'EMA snapshots: {printable(message)}', logger='current', level=level)
