"""The strategy that docs/scale.md has for models that ``fully_shard`` cuts."""

import os

from mmengine._strategy import DDPStrategy, SingleDeviceStrategy
from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.registry import STRATEGIES
from mmengine.utils import apply_to
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def is_cut(value):
    return isinstance(value, DTensor)


def cut(value, like):
    if not is_cut(like) or not getattr(value, 'ndim', 0):  # a count of steps has no dimension
        return value
    return distribute_tensor(value, like.device_mesh, like.placements)


@STRATEGIES.register_module()
class FSDP2Strategy(DDPStrategy):
    def __init__(self, blocks=(), sharding=None, **options):
        super().__init__(**options)
        self.blocks = blocks  # names of modules that are gathered by themselves, such as the stages of a backbone
        self.sharding = sharding or {}  # more arguments of fully_shard, such as its policies

    def _wrap_model(self, model):
        model = self.convert_model(model.to(get_device()))
        for name in self.blocks:
            fully_shard(model.get_submodule(name), **self.sharding)
        return fully_shard(model, **self.sharding)

    def model_state_dict(self):
        return apply_to(self.model.state_dict(), is_cut, lambda value: value.full_tensor().cpu())

    def optim_state_dict(self):
        return apply_to(super().optim_state_dict(), is_cut, lambda value: value.full_tensor().cpu())

    def load_model_state_dict(self, state_dict, **options):
        own = self.model.state_dict()
        names = {name: name.removeprefix('module.') for name in state_dict}
        super().load_model_state_dict(
            {name: cut(state_dict[key], own.get(name)) for key, name in names.items()}, **options
        )

    def load_optim_state_dict(self, state_dict):
        parameters = [parameter for group in self.optim_wrapper.param_groups for parameter in group['params']]
        for index, state in state_dict['state'].items():
            state.update({name: cut(value, parameters[index]) for name, value in state.items()})
        super().load_optim_state_dict(state_dict)

    def save_checkpoint(self, filename, **options):  # by all processes, of which the main one writes
        SingleDeviceStrategy.save_checkpoint(self, filename if is_main_process() else os.devnull, **options)
