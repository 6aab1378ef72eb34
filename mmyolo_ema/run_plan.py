"""What a config says about its average and about the length of its run."""

import contextlib
import io
from typing import Any, NamedTuple, Optional

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from mmyolo_ema.building import build_average, scope_of
from mmyolo_ema.ema_config import class_name, ema_hook_in, ema_type_of, package_of
from mmyolo_ema.ema_options import check_options, of_average
from mmyolo_ema.models import schedule_of
from mmyolo_ema.schedules import Schedule, ramp_of_age
from mmyolo_ema.schedules.classes import SCHEDULES, schedule_of_class

_DEFAULT_HOOK = dict(type='mmyolo_ema.EMAHook', ema_type='mmyolo_ema.ExpMomentumEMA')


class RunPlan(NamedTuple):
    """A run and its average.

    Attributes:
        hook: The EMAHook as the config has it; this package's, with its defaults, if it has none.
        place: Its index in ``custom_hooks``; None if the config has none.
        schedule: The momentum of each update.
        further: The same for each further average, by its name.
        updates: How often the average is updated in the run.
        begin: Updates that the model gets before the average begins.
        updates_per_epoch: The same for an epoch; None if it is not known.
        iterations: How many of them an update takes.
        batch_size: Images in an update, over all processes; None if the config has no batch size.
        origin: How the number of updates comes about, in words.
    """

    hook: dict[str, Any]
    place: Optional[int]
    schedule: Schedule
    further: dict[str, Schedule]
    updates: int
    begin: int
    updates_per_epoch: Optional[float]
    iterations: int
    batch_size: Optional[int]
    origin: str


def plan_run(cfg: Config, gpus: int = 1, iters: Optional[int] = None, dataset_size: Optional[int] = None) -> RunPlan:
    """Reads a config as a runner would.

    Args:
        cfg: Config of a training.
        gpus: Number of processes that train. Defaults to 1.
        iters: Iterations in the whole run, for a config that does not tell. Defaults to None.
        dataset_size: Images in the training set. Defaults to None: the dataset is built, which reads its annotations.

    Raises:
        TypeError: If the EMAHook has an option that neither it nor its average takes.
        ValueError: If the config has more than one EMAHook, its average is of an unknown class, or the length of
            the run does not follow from it.

    Example:
        >>> from mmengine.config import Config
        >>> cfg = Config(dict(
        ...     train_cfg=dict(by_epoch=True, max_epochs=24),
        ...     train_dataloader=dict(batch_size=8),
        ...     custom_hooks=[dict(type='mmyolo_ema.EMAHook', ema_type='mmyolo_ema.ExpMomentumEMA', momentum=0.05)]))
        >>> plan = plan_run(cfg, dataset_size=160)
        >>> plan.updates, plan.updates_per_epoch, plan.schedule
        (480, 20.0, Ramp(momentum=0.05, gamma=2000, interval=1))
    """
    place, hook = ema_hook_in(cfg.get('custom_hooks')) or (None, _DEFAULT_HOOK)
    check_options(hook)
    init_default_scope(scope_of(cfg))
    per_epoch, total, origin = _iterations(cfg, gpus, iters, dataset_size)
    accumulated = _accumulative_counts(_section(cfg, 'optim_wrapper'))
    if accumulated > 1:
        origin += f', {accumulated} of them accumulated for an optimizer step'
    counted = accumulated if package_of(hook['type']) == 'mmyolo_ema' else 1
    if counted < accumulated:
        origin += " (MMEngine's EMAHook counts each iteration as an update all the same)"
    begin = _begin(hook, per_epoch, by_epoch='max_epochs' in _section(cfg, 'train_cfg'))
    if begin >= total:
        raise ValueError(f'the average would begin after {begin:,} iterations, but the run has {total:,}')
    batch = _count(_section(cfg, 'train_dataloader'), 'batch_size')
    scaling = _section(cfg, 'auto_scale_lr')
    meant_for = scaling.get('base_batch_size') if scaling.get('enable') else None
    if batch and meant_for and meant_for != batch * gpus * accumulated:
        origin += (
            f'; auto_scale_lr.base_batch_size is {meant_for} images a step, and here it is '
            f'{batch * gpus * accumulated}: --gpus says how many train'
        )
    # The last iteration makes a step in any case; one that stood before the average began counts for it.
    updates = -(-total // counted) - begin // counted
    updates_per_epoch = per_epoch and per_epoch / counted
    # What a further average does not say itself is the main one's, but for the schedule.
    common = {name: value for name, value in hook.items() if name not in ('momentum', 'gamma', 'mean_age')}
    common['ema_type'] = ema_type_of(hook)
    return RunPlan(
        hook=hook,
        place=place,
        schedule=_schedule(hook, updates, updates_per_epoch),
        further={
            name: _schedule({**common, **own}, updates, updates_per_epoch)
            for name, own in _section(hook, 'averages').items()
        },
        updates=updates,
        begin=begin // counted,
        updates_per_epoch=updates_per_epoch,
        iterations=counted,
        batch_size=batch and batch * gpus * counted,
        origin=origin,
    )


def _schedule(hook: dict[str, Any], updates: int, updates_per_epoch: Optional[float]) -> Schedule:
    """Returns the schedule of the average that a hook makes; a class that is not known is asked for it."""
    if hook.get('mean_age') is not None:
        try:
            interval = schedule_of_class('ExpMomentumEMA', dict(interval=hook.get('interval', 1))).interval
            return ramp_of_age(hook['mean_age'], updates, updates_per_epoch, interval)
        except ValueError as error:
            raise ValueError(f'mean_age={hook["mean_age"]!r} of the EMAHook: {error}') from error
    ema_type = ema_type_of(hook)
    if class_name(ema_type) in SCHEDULES:
        return schedule_of_class(class_name(ema_type), hook)
    unknown = (
        f'the schedule of ema_type={ema_type!r} is not known; known are {", ".join(SCHEDULES)} and classes '
        'derived from mmyolo_ema.ExpMomentumEMA'
    )
    try:
        schedule = schedule_of(build_average(of_average(hook)))
    except Exception as error:  # what a class of the user's raises is up to it
        raise ValueError(f'{unknown} ({type(error).__name__}: {error!s:.200})') from error
    if schedule is None:
        raise ValueError(unknown)
    return schedule


def _iterations(
    cfg: Config, gpus: int, iters: Optional[int], dataset_size: Optional[int]
) -> tuple[Optional[float], int, str]:
    """Returns the iterations in an epoch, if that is known, and in all, and how they come about."""
    loop = _section(cfg, 'train_cfg')
    epochs: Any = _count(loop, 'max_epochs')
    total = _count(loop, 'max_iters')
    if iters is not None:
        return epochs and iters / epochs, iters, f'{iters:,} iterations as given'
    if not (epochs or total):
        raise ValueError('it has no train_cfg.max_epochs or max_iters; pass --iters')
    in_all = f'{total:,} iterations (train_cfg.max_iters)' if total else ''
    if total and dataset_size is None:
        return None, total, in_all
    loader = _section(cfg, 'train_dataloader')
    if not _count(loader, 'batch_size'):
        raise ValueError('it has no train_dataloader.batch_size; pass --iters')
    images = _dataset_length(cfg) if dataset_size is None else dataset_size
    per_epoch = _iterations_per_epoch(loader, images, gpus)
    words = f'{images:,} images, {loader["batch_size"]} in a batch' + (f' on each of {gpus} GPUs' if gpus > 1 else '')
    if per_epoch == 0:
        raise ValueError(f'an epoch has no iterations: {words}, and incomplete batches are dropped')
    if total:
        return per_epoch, total, f'{in_all}; {words}'
    return per_epoch, epochs * per_epoch, f'{epochs} epochs x {per_epoch:,} iterations: {words}'


def _dataset_length(cfg: Config) -> int:
    init_default_scope(scope_of(cfg))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells how it gets on
            return len(DATASETS.build(cfg.train_dataloader['dataset']))
    except Exception as error:  # what a dataset's class raises is up to its class
        raise ValueError(
            f'its training set cannot be read ({type(error).__name__}: {error!s:.200}); pass --dataset-size, or --iters'
        ) from error


def _iterations_per_epoch(loader: dict[str, Any], images: int, gpus: int) -> int:
    """Returns how many batches each process gets, as MMEngine's samplers and torch's loader divide."""
    given = _count(loader, 'num_batch_per_epoch')
    if given:
        return given
    of_process, batch = -(-images // gpus), loader['batch_size']
    drops_last = loader.get('drop_last') or _section(loader, 'batch_sampler').get('drop_last')
    return of_process // batch if drops_last else -(-of_process // batch)


def _accumulative_counts(optim_wrapper: dict[str, Any]) -> int:
    wrappers = [optim_wrapper]
    if 'constructor' in optim_wrapper and 'type' not in optim_wrapper:
        # A wrapper for each of several optimizers: the average follows the first that steps.
        wrappers = [part for part in optim_wrapper.values() if isinstance(part, dict) and 'optimizer' in part]
    return min((_count(wrapper, 'accumulative_counts') or 1 for wrapper in wrappers), default=1)


def _begin(hook: dict[str, Any], per_epoch: Optional[float], by_epoch: bool) -> int:
    """Returns the number of iterations before the average begins."""
    begin_epoch, begin_iter = (_count(hook, name, least=0) or 0 for name in ('begin_epoch', 'begin_iter'))
    if begin_epoch and not by_epoch:
        raise ValueError(f'begin_epoch={begin_epoch} is for a run that counts epochs (train_cfg.max_epochs)')
    return round((begin_epoch - 1) * (per_epoch or 0)) if begin_epoch > 1 else max(begin_iter - 1, 0)


def _section(cfg: Any, name: str) -> dict[str, Any]:
    """Returns a dictionary of a config, empty if there is none."""
    section = cfg.get(name)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise ValueError(f'{name} must be a dictionary, but got {section!r:.80}')
    return section


def _count(section: dict[str, Any], name: str, least: int = 1) -> Optional[int]:
    """Returns a number of things that a config names, None if it does not."""
    value = section.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise ValueError(f'{name} must be an integer of at least {least}, but got {value!r:.80}')
    return value
