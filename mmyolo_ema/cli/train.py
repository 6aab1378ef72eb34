"""Train a detector with MMEngine's runner."""

import argparse
import os
from pathlib import Path
from typing import Any, Optional

from mmengine.config import Config
from mmengine.device import is_cuda_available, is_musa_available, is_npu_available
from mmengine.dist import broadcast_object_list, get_world_size, is_main_process

from mmyolo_ema import checkpoint
from mmyolo_ema.building import build_average
from mmyolo_ema.cli.config import load_config
from mmyolo_ema.cli.ending import stop
from mmyolo_ema.cli.resumption import check_resumable
from mmyolo_ema.cli.runner import build_runner, finish, join_processes, stopped_by_all
from mmyolo_ema.ema_config import class_name, ema_type_of, hooks_named, package_of
from mmyolo_ema.ema_options import check_class, check_options, of_average
from mmyolo_ema.files import use_whole_files
from mmyolo_ema.hooks.own_files import OwnFilesOnly
from mmyolo_ema.printing import printable, say
from mmyolo_ema.processes import raised_by_all
from mmyolo_ema.registry import HOOKS, MODELS
from mmyolo_ema.schedules.classes import SCHEDULES


def check_hooks(cfg: Config) -> None:
    """Stops if a config has two EMAHooks, of which one would leave the other's average in the model, or a wrong one."""
    ema_hooks = [hook for _, hook in hooks_named(cfg.get('custom_hooks'), 'EMAHook')]
    if len(ema_hooks) > 1:
        stop(
            'the config has two EMAHooks in custom_hooks, and would save the average of one as the raw weights of '
            'the other. Leave out that of the base config.'
        )
    hooks = [hook for hook in cfg.get('custom_hooks') or [] if isinstance(hook, dict)]
    try:
        for hook in hooks:
            check_class(hook.get('type'), HOOKS)
        for hook in ema_hooks:
            check_class(hook.get('ema_type'), MODELS)
            check_options(hook)
            check_averages_of(hook)
        for hook in hooks:
            if package_of(hook.get('type')) == 'mmyolo_ema':
                HOOKS.build({name: value for name, value in hook.items() if name != 'priority'})
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        stop(f'the config cannot be trained: {error}')


def check_averages_of(hook: dict[str, Any]) -> None:
    """Raises what the averages of an EMAHook would raise for an option of a wrong form, whatever the model."""
    ema_type = ema_type_of(hook)
    if package_of(ema_type) in ('mmengine', 'mmyolo_ema') and class_name(ema_type) in SCHEDULES:
        for own in ({}, *(hook.get('averages') or {}).values()):
            build_average(of_average({**hook, **own, 'ema_type': ema_type}))


def set_amp(cfg: Config) -> None:
    if not (is_cuda_available() or is_npu_available() or is_musa_available()):
        stop("--amp needs a GPU, and there is none: MMEngine's AmpOptimWrapper does not train on the CPU")
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.loss_scale = 'dynamic'


def set_auto_scale_lr(cfg: Config) -> None:
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        stop(
            '--auto-scale-lr needs the batch size that the learning rate is meant for: '
            'set auto_scale_lr.base_batch_size in the config'
        )
    cfg.auto_scale_lr.enable = True


def set_latest_checkpoint(cfg: Config) -> Optional[str]:
    """Resumes from the last checkpoint that is complete, and returns what there is to say.

    The main process decides, and the others follow: a folder that hosts do not share may hold something else on each.

    Raises:
        ValueError: If there are checkpoints, but none is complete.
    """
    with raised_by_all():
        choice = list(choose_checkpoint(cfg.work_dir)) if is_main_process() else [None, None]
    broadcast_object_list(choice)
    name, note = choice
    if name is not None:
        cfg.load_from = str(Path(cfg.work_dir).resolve() / name)
    elif not is_main_process():
        cfg.resume = False  # or MMEngine would look in the folder of this host
    return note


def choose_checkpoint(work_dir: str) -> tuple[Optional[str], Optional[str]]:
    """Returns the last checkpoint that is complete, as named from the work directory, and what there is to say."""
    latest, passed_over = checkpoint.latest_complete(work_dir)
    broken = ', '.join(str(path) for path in passed_over)
    if latest is None and passed_over:
        raise ValueError(
            f'cannot resume: no checkpoint in {work_dir} is complete; {broken} truncated or missing. '
            'Remove them to start anew.'
        )
    if latest is None:
        return None, f'there is no checkpoint in {work_dir} to resume from: training starts anew'
    note = (
        f'resuming from {latest}, the last complete checkpoint: {broken} truncated or missing' if passed_over else None
    )
    return os.path.relpath(latest, Path(work_dir).resolve()), note


def check_checkpoint(cfg: Config) -> None:
    """Raises if the checkpoint to start from cannot be used, before anything is written.

    Raises:
        ValueError: In all processes alike.
    """
    start = cfg.get('load_from')
    if start is None or (isinstance(start, str) and '://' in start and not start.startswith('file:')):
        return
    with raised_by_all():
        try:
            content = checkpoint.read(start, mmap=True)
            checkpoint.verify(start, must_have_checksums=False)
            if cfg.get('resume'):
                check_resumable(content, cfg)
                print_if_done(content['meta'], cfg.train_cfg)
        except (OSError, ValueError, RuntimeError, TypeError) as error:
            is_missing = isinstance(error, FileNotFoundError) and get_world_size() > 1
            hint = '. Each host needs it: share the folder, or copy it there' if is_missing else ''
            raise ValueError(f'cannot start from {start}: {error}{hint}') from error


def print_if_done(meta: dict[str, Any], train_cfg: dict[str, Any]) -> None:
    for counted, planned in (('epoch', 'max_epochs'), ('iter', 'max_iters')):
        wanted, done = train_cfg.get(planned), meta.get(counted)
        if isinstance(wanted, int) and isinstance(done, int) and done >= wanted and is_main_process():
            say(f'nothing is left to train: the checkpoint is of {counted} {done}, and {planned} is {wanted}')


def main(args: argparse.Namespace) -> None:
    checkpoint.use_safe_loader()
    use_whole_files()
    cfg = load_config(args, needs=('model', 'train_dataloader', 'train_cfg', 'optim_wrapper'))
    join_processes(cfg, args.local_rank)
    with stopped_by_all():
        check_hooks(cfg)
        if args.amp:
            set_amp(cfg)
        if args.auto_scale_lr:
            set_auto_scale_lr(cfg)
    if args.resume is not None:
        cfg.resume, cfg.load_from = True, None if args.resume == 'auto' else args.resume
    elif isinstance(cfg.get('resume'), str):  # a FlexibleRunner would take it, and the usual one the latest instead
        cfg.resume, cfg.load_from = True, cfg.resume
    try:
        note = set_latest_checkpoint(cfg) if cfg.get('resume') and cfg.get('load_from') is None else None
        check_checkpoint(cfg)
    except ValueError as error:
        stop(error)
    runner = build_runner(cfg, args.local_rank)
    if note is not None:
        runner.logger.warning(printable(note))
    runner.register_hook(OwnFilesOnly())
    runner.train()
    finish()
