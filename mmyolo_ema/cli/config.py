"""Reading the config that a command names."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from mmengine.config import Config
from mmengine.registry import init_default_scope
from torch import nn

from mmyolo_ema import building
from mmyolo_ema.cli.arguments import SET_BY_LAUNCHER, check_writable
from mmyolo_ema.cli.ending import stop
from mmyolo_ema.files import check_no_links
from mmyolo_ema.run_plan import RunPlan, plan_run
from mmyolo_ema.schedules import MOST_UPDATES


def read_config(path: str, options: Optional[dict[str, Any]]) -> Config:
    """Returns a config with overrides; stops if it cannot be read."""
    if not os.path.isfile(path):
        stop(f'there is no config {path}')
    try:
        cfg = Config.fromfile(path)
        cfg.merge_from_dict(options or {})
    except (Exception, SystemExit) as error:  # a config is a program, so anything can go wrong in it
        stop(f'the config {path} cannot be read: {type(error).__name__}: {error}')
    return cfg


def read_plan(cfg: Config, args: argparse.Namespace) -> RunPlan:
    """Returns the run and the average of a config; stops if it does not tell enough."""
    try:
        plan = plan_run(cfg, args.gpus, args.iters, args.dataset_size)
    except (ValueError, TypeError) as error:
        stop(f'the config {args.config} cannot be reported on: {error}')
    if plan.updates > MOST_UPDATES:
        stop(f'the config {args.config} cannot be reported on: {plan.updates:,} updates are more than {MOST_UPDATES:,}')
    return plan


def load_config(args: argparse.Namespace, needs: Sequence[str]) -> Config:
    """Returns the config that the flags name, with their overrides; stops if it cannot be read or lacks a part."""
    cfg = read_config(args.config, args.cfg_options)
    for part in needs:
        if cfg.get(part) is None:
            stop(f'the config {args.config} defines no {part}')
    cfg.launcher = args.launcher
    if args.work_dir == '':
        stop('--work-dir is empty: name a folder')
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        cfg.work_dir = str(Path('work_dirs') / Path(args.config).stem)
    check_writable(cfg.work_dir, 'the work directory')
    try:
        check_no_links(Path(cfg.work_dir, 'last_checkpoint'), Path(cfg.work_dir, Path(args.config).name))
    except ValueError as error:
        stop(error)
    variable = SET_BY_LAUNCHER.get(args.launcher)
    if variable is not None and variable not in os.environ:
        stop(
            f'--launcher {args.launcher} is for a process that it started: {variable} is not set. '
            'Use tools/dist_train.sh, tools/slurm_train.sh or their twins for tests.'
        )
    return cfg


def build_model(cfg: Config) -> nn.Module:
    """Returns the model of a config, to compare a checkpoint with; stops if it cannot be built."""
    init_default_scope(building.scope_of(cfg))
    try:
        return building.build_model(cfg)
    except Exception as error:  # what a model's class raises is up to its class
        stop(f"the config's model cannot be built: {type(error).__name__}: {error}")
