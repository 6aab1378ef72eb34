"""The runner of a config, alone or with others in a process group."""

import atexit
import os
import sys

import torch
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config
from mmengine.dist import init_dist
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing
from torch import distributed


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
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


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
