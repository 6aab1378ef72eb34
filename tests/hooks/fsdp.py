"""Strategies that cut models, for a toy on the CPU."""

import torch
from mmengine._strategy.fsdp import FSDPStrategy
from mmengine.registry import STRATEGIES
from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, FullyShardedDataParallel

from tests.hooks.fsdp2 import FSDP2Strategy


@STRATEGIES.register_module()
class ResumingFSDPStrategy(FSDPStrategy):
    def load_optim_state_dict(self, state_dict):
        optimizer = self.optim_wrapper.optimizer
        self.optim_wrapper.load_state_dict(
            FullyShardedDataParallel.optim_state_dict_to_load(self.model, optimizer, state_dict)
        )


def is_last(module, recurse, **_):
    """Whether FSDP is to gather a module by itself: the last layer."""
    return recurse or getattr(module, 'out_features', 0) == 1


def fsdp1(**options):
    """Returns the config of MMEngine's strategy, in the form of its 'full' that a CPU can do."""
    return dict(
        type='ResumingFSDPStrategy',
        model_wrapper=dict(
            type='MMFullyShardedDataParallel', device_id=torch.device('cpu'), auto_wrap_policy=is_last, **options
        ),
        state_dict_cfg=dict(
            state_dict_type='FULL_STATE_DICT',
            state_dict_config=FullStateDictConfig(rank0_only=True),
            optim_state_dict_config=FullOptimStateDictConfig(rank0_only=True),
        ),
    )


def fsdp2(blocks=('linear',), **sharding):
    """Returns the config of the strategy of the documentation."""
    return dict(type=FSDP2Strategy, blocks=blocks, sharding=sharding)
