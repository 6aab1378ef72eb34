"""Every private name of MMEngine, MMDetection and torch that the package leans on, one function or alias each.

``tests/test_upstream.py`` pins each. ``_parameters``, ``_buffers`` and ``_modules`` of a module are not here: torch's
documentation uses them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Optional

import torch
from mmengine.hooks import EMAHook
from mmengine.logging import MessageHub
from mmengine.runner import BaseLoop, Runner
from torch import Tensor, _weights_only_unpickler, nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp._runtime_utils import _reshard
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX
from torch.optim import Optimizer

# One call for a list of tensors, as torch's own optimizers make it; no public name does. Aliases, because each step
# calls them.
lerp_all = torch._foreach_lerp_
copy_all = torch._foreach_copy_
norms_of = torch._foreach_norm

# What the name of a module's extra state ends in; nothing else in a state_dict() tells it from a weight.
EXTRA_STATE_SUFFIX = _EXTRA_STATE_KEY_SUFFIX

# BatchNorm of any number of dimensions, SyncBatchNorm among them: their public classes have no other one in common.
BatchNorm = _BatchNorm

# Under which name a module of torch.compile holds the module that it compiled; its class is private too, and slow to
# import.
COMPILED = '_orig_mod'

# Under which name FullyShardedDataParallel, and what torch puts around a module for activation checkpointing, hold the
# module that they wrap. A state has neither in its names.
FSDP_WRAPPED, CHECKPOINT_WRAPPED = '_fsdp_wrapped_module', '_checkpoint_wrapped_module'


class FlatRange(NamedTuple):
    """Where FullyShardedDataParallel keeps a parameter, and which of its elements, ``start`` to ``stop``, are here."""

    #: The modules that hold it, each with the name that it has there.
    holders: list[tuple[nn.Module, str]]
    shape: torch.Size
    stride: tuple[int, ...]
    #: Where the first of the elements is in the local shard.
    offset: int
    start: int
    stop: int


def _flat_wrappers(model: nn.Module) -> list[Any]:
    modules = (module for module in model.modules() if isinstance(module, FullyShardedDataParallel))
    return [module for module in modules if module._handle is not None]


def flat_handles(model: nn.Module) -> list[Any]:
    """Returns what FullyShardedDataParallel knows of each flat parameter of a model."""
    # use_orig_params shows the parameters, but not which of their elements are here.
    return [wrapper._handle for wrapper in _flat_wrappers(model)]


def flat_ranges(handle: Any) -> list[FlatRange]:
    """Returns what a flat parameter consists of."""
    flat = handle.flat_param
    shared = [(info[:2], info[3:5]) for info in flat._shared_param_infos]
    return [
        FlatRange(
            [(module, key), *(holder[::-1] for holder, first in shared if first == (key, module))],
            shape,
            stride,
            info.offset_in_shard or 0,
            info.intra_param_start_idx or 0,
            info.intra_param_end_idx + 1 if info.in_shard else 0,
        )
        for (key, module, _), shape, stride, info in zip(
            flat._param_infos, flat._shapes, flat._strides, flat._shard_param_infos
        )
    ]


def local_shard(handle: Any) -> Tensor:
    """Returns what this process has of a flat parameter, in the same memory."""
    # The first forward makes the attribute; later the parameter itself may be whole.
    return getattr(handle.flat_param, '_local_shard', handle.flat_param).detach()


def reshard_flat(model: nn.Module) -> None:
    """Makes FullyShardedDataParallel forget the whole weights of the last forward."""
    for wrapper in _flat_wrappers(model):
        handle = wrapper._handle
        # The outermost may show the parts and keep the whole for the next forward. Before the first there is none.
        if handle.uses_sharded_strategy and hasattr(handle.flat_param, '_local_shard'):
            _reshard(wrapper, handle, True)


def has_training_loop(runner: Runner) -> bool:
    """Whether a runner has made its training loop."""
    # The public property would make it.
    return isinstance(runner._train_loop, BaseLoop)


def evaluation_loops(runner: Runner) -> list[BaseLoop]:
    """Returns those of the validation and test loop that a runner has made."""
    # The public properties would make them.
    return [loop for loop in (runner._val_loop, runner._test_loop) if isinstance(loop, BaseLoop)]


def is_made_to_resume(runner: Runner) -> bool:
    """Whether a runner was made with ``resume=True``."""
    # The runner has no public attribute for it, and its config may differ.
    return bool(runner._resume)


def start_of(runner: Runner) -> Optional[str]:
    """Returns the checkpoint that a runner was made to start from, if it was named."""
    # The runner has no public attribute for it, and its config may differ. A FlexibleRunner takes resume=NAME too.
    return runner._resume if isinstance(runner._resume, str) else runner._load_from


def averaging_has_begun(hook: EMAHook, runner: Runner) -> bool:
    """Whether a run has reached the ``begin_iter`` or ``begin_epoch`` of a hook."""
    # A subclass may override it, so the rule is not repeated here.
    return hook._ema_started(runner)


def iterations_per_step(wrapper: Any) -> int:
    """Returns how many iterations a step takes by an OptimWrapper; 1 if it is of another class, that does not say."""
    # No public name tells the accumulation.
    return getattr(wrapper, '_accumulative_counts', 1)


def has_step_hooks(kind: type[Optimizer]) -> bool:
    """Whether torch calls hooks after each step of a class of optimizers."""
    # torch wraps the step when it constructs the first object of the class, and only this mark tells.
    return getattr(kind.step, 'hooked', False)


def is_skipped(optimizer: Optimizer) -> bool:
    """Whether the gradient scaler tells an optimizer, while it steps, to do nothing."""
    # A fused optimizer is called for a skipped step too; the scaler puts this attribute on it.
    overflow = getattr(optimizer, 'found_inf', None)
    return overflow is not None and bool(overflow.item())


def will_start_workers(loader: Any) -> bool:
    """Whether a data loader has persistent workers that the first iteration will start."""
    # Its public attributes are the same before and after.
    return getattr(loader, 'persistent_workers', False) and loader._iterator is None


def remove_message_hub(name: str) -> None:
    """Removes a message hub, so that the one made before it is the current one again."""
    # A hub stays for the rest of the process, and the newest is the current one.
    MessageHub._instance_dict.pop(name)


def read_ground_truth(metric: Any) -> Any:
    """Returns the annotations that MMDetection's CocoMetric has read; None if it was given no file of them."""
    # Reading the file again would take as long as building the metric did.
    return metric._coco_api


def is_persistent(module: nn.Module, buffer: str) -> bool:
    """Whether the state of a module has its buffer of that name."""
    # state_dict() would tell too, but for its hooks, which may rename and remove.
    return buffer not in module._non_persistent_buffers_set


def add_own_state(module: nn.Module, state: dict[str, Any]) -> None:
    """Adds the parameters and buffers that a module holds itself to a state, and not those of its children."""
    # state_dict() has those of the children, and runs all hooks of the module.
    module._save_to_state_dict(state, '', keep_vars=False)


def allowed_globals() -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns what torch's safe reader knows by name: of torch, and what the user allowed."""
    # torch.serialization.get_safe_globals() lists the second only, and not by name.
    reader: Any = _weights_only_unpickler
    return reader._get_allowed_globals(), reader._get_user_allowed_globals()


@contextmanager
def only_allowed(known: dict[str, Any]) -> Iterator[None]:
    """Makes torch's safe reader know these names and no others, in the whole process. Does not lock."""
    # torch can be told to allow more, but not less.
    reader: Any = _weights_only_unpickler
    of_torch, of_user = reader._get_allowed_globals, reader._get_user_allowed_globals
    reader._get_allowed_globals, reader._get_user_allowed_globals = lambda: known, dict
    try:
        yield
    finally:
        reader._get_allowed_globals, reader._get_user_allowed_globals = of_torch, of_user
