"""The runner of a config, alone or with others in a process group."""

import atexit
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config
from mmengine.dist import init_dist
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing
from torch import distributed

from mmyolo_ema.cli.ending import stop
from mmyolo_ema.hooks import EMAHook, SnapshotHook
from mmyolo_ema.hooks.loading_errors import share_loading_errors
from mmyolo_ema.processes import raised_by_all


def join_processes(cfg: Config, local_rank: int) -> None:
    """Joins the processes of a run if the config names a launcher; once, and before MMEngine's runner would do it."""
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    if cfg.launcher == 'none' or distributed.is_initialized():
        return
    if _joins_by_gloo(cfg):
        distributed.init_process_group('gloo')
    else:
        options = cfg.get('env_cfg') or {}
        set_multi_processing(**options.get('mp_cfg', {}), distributed=True)
        init_dist(cfg.launcher, **options.get('dist_cfg', {}))


@contextmanager
def stopped_by_all() -> Iterator[None]:
    """Stops all processes of a run with one line each if one of them is stopped or raises ValueError.

    All of them must come here. Within, they must not wait for each other.
    """
    try:
        with raised_by_all():
            yield
    except ValueError as error:
        stop(error)


def _joins_by_gloo(cfg: Config) -> bool:
    """Whether there is no GPU, one of which MMEngine would select."""
    return cfg.launcher == 'pytorch' and not torch.cuda.is_available()


def build_runner(cfg: Config, local_rank: int) -> Runner:
    """Returns the runner of a config, in a process group if the config names a launcher."""
    join_processes(cfg, local_rank)
    setup_cache_size_limit_of_dynamo()
    if _joins_by_gloo(cfg):
        # MMEngine would wrap the model for a GPU, which raises where there is none.
        cfg.setdefault(
            'model_wrapper_cfg',
            dict(broadcast_buffers=False, find_unused_parameters=cfg.get('find_unused_parameters', False)),
        )
        cfg.model_wrapper_cfg.device_ids = None
    runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
    share_loading_errors(runner)
    runner.load_or_resume = _stopping(runner.load_or_resume)
    for hook in runner.hooks:
        if isinstance(hook, (EMAHook, SnapshotHook)):
            for point in ('before_run', 'before_train'):
                setattr(hook, point, _stopping(getattr(hook, point)))
    return runner


def _stopping(call: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that stops in one line where a hook refuses what the config or a checkpoint says."""

    def call_or_stop(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except (AssertionError, ValueError) as error:  # the first is how MMEngine's hook refuses
            stop(error)

    return call_or_stop


def finish() -> None:
    """Ends the process if gloo connects it to others; returns otherwise.

    Leaving the group ends none of gloo's threads, and one that still holds a tensor while Python takes itself apart
    aborts the process. So that part of the end is left out, and what was registered for the end is done.
    """
    if not distributed.is_initialized() or distributed.get_backend() != 'gloo':
        return
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
