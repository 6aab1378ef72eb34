"""What a config says about its average and about the length of its run."""

import contextlib
import io
from typing import Any, NamedTuple, Optional

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from mmyolo_ema.ema_config import ema_hook_in, schedule_of
from mmyolo_ema.schedule import Schedule

__all__ = ['RunPlan', 'plan_run']


class RunPlan(NamedTuple):
    """A run and its average.

    Attributes:
        hook: The EMAHook as the config has it.
        place: Its index in ``custom_hooks``.
        schedule: The momentum of each update.
        updates: How often the average is updated in the run.
        begin: Updates that the model gets before the average begins.
        updates_per_epoch: The same for an epoch; None if it is not known.
        batch_size: Images in an update, over all processes; None if the config has no batch size.
        origin: How the number of updates comes about, in words.
    """

    hook: dict
    place: int
    schedule: Schedule
    updates: int
    begin: int
    updates_per_epoch: Optional[float]
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
        ValueError: If the config has no EMAHook or more than one, its average is of an unknown class, or the length of
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
    place, hook = ema_hook_in(cfg.get('custom_hooks'))
    schedule = schedule_of(hook)
    per_epoch, total, origin = _iterations(cfg, gpus, iters, dataset_size)
    accumulated = _accumulative_counts(cfg.get('optim_wrapper') or {})
    if accumulated > 1:
        origin += f', {accumulated} of them accumulated for an optimizer step'
    counted = accumulated if _listens_to_optimizer(hook) else 1
    if counted < accumulated:
        origin += " (MMEngine's EMAHook counts each iteration as an update all the same)"
    begin = _begin(hook, per_epoch)
    if begin >= total:
        raise ValueError(f'the average would begin after {begin:,} iterations, but the run has {total:,}')
    batch = (cfg.get('train_dataloader') or {}).get('batch_size')
    meant_for = (cfg.get('auto_scale_lr') or {}).get('base_batch_size')
    if batch and meant_for and meant_for != batch * gpus * accumulated:
        origin += f"; the config's learning rate is meant for {meant_for} images a step (--gpus says how many train)"
    return RunPlan(
        hook=hook,
        place=place,
        schedule=schedule,
        updates=-(-(total - begin) // counted),
        begin=-(-begin // counted),
        updates_per_epoch=per_epoch and per_epoch / counted,
        batch_size=batch and batch * gpus * counted,
        origin=origin)


def _listens_to_optimizer(hook: dict) -> bool:
    """Whether the hook is ours: MMEngine's counts iterations."""
    kind = hook['type']
    return (kind if isinstance(kind, str) else kind.__module__).startswith('mmyolo_ema.')


def _iterations(cfg: Config, gpus: int, iters: Optional[int],
                dataset_size: Optional[int]) -> tuple[Optional[float], int, str]:
    """Returns the iterations in an epoch, if that is known, and in all, and how they come about."""
    loop = cfg.get('train_cfg') or {}
    epochs: Any = loop.get('max_epochs')
    total = loop.get('max_iters')
    if iters is not None:
        return epochs and iters / epochs, iters, f'{iters:,} iterations as given'
    if not (epochs or total):
        raise ValueError('it has no train_cfg.max_epochs or max_iters; pass --iters')
    in_all = f'{total:,} iterations (train_cfg.max_iters)' if total else ''
    if total and dataset_size is None:
        return None, total, in_all
    loader = cfg.get('train_dataloader') or {}
    if not loader.get('batch_size'):
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
    init_default_scope(cfg.get('default_scope') or 'mmdet')
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools tells how it gets on
            return len(DATASETS.build(cfg.train_dataloader['dataset']))
    except Exception as error:  # what a dataset's class raises is up to its class
        raise ValueError(f'its training set cannot be read ({type(error).__name__}: {error!s:.200}); pass '
                         '--dataset-size, or --iters') from error


def _iterations_per_epoch(loader: dict, images: int, gpus: int) -> int:
    """Returns how many batches each process gets, as MMEngine's samplers and torch's loader divide."""
    of_process, batch = -(-images // gpus), loader['batch_size']
    drops_last = loader.get('drop_last') or (loader.get('batch_sampler') or {}).get('drop_last')
    iterations = of_process // batch if drops_last else -(-of_process // batch)
    return min(iterations, loader.get('num_batch_per_epoch') or iterations)


def _accumulative_counts(optim_wrapper: dict) -> int:
    if 'constructor' in optim_wrapper and 'type' not in optim_wrapper:
        # A wrapper for each of several optimizers: the average follows the first that steps.
        parts = [part for part in optim_wrapper.values() if isinstance(part, dict) and 'optimizer' in part]
        return min((part.get('accumulative_counts', 1) for part in parts), default=1)
    return optim_wrapper.get('accumulative_counts', 1)


def _begin(hook: dict, per_epoch: Optional[float]) -> int:
    """Returns the number of iterations before the first update."""
    if hook.get('begin_epoch', 0) > 1:
        if per_epoch is None:
            raise ValueError(f'begin_epoch={hook["begin_epoch"]} needs the length of an epoch; pass --dataset-size')
        return round((hook['begin_epoch'] - 1) * per_epoch)
    return max(hook.get('begin_iter', 0) - 1, 0)
