"""Runs that would go on with wrong weights, or lose them, and are refused at their start."""

from collections.abc import Iterator

from mmengine.hooks import EMAHook
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch.distributed.fsdp import StateDictType

from mmyolo_ema._upstream import flat_handles
from mmyolo_ema.models import ExpMomentumEMA
from mmyolo_ema.models.flat_parts import state_dict_type
from mmyolo_ema.models.fully_sharded import is_fully_sharded

# By names, so that no engine needs to be installed.
_STRATEGIES = dict(DeepSpeedStrategy='DeepSpeed', ColossalAIStrategy='ColossalAI')

_STATE_DICT_TYPES = StateDictType.FULL_STATE_DICT, StateDictType.LOCAL_STATE_DICT


def check_run(runner: Runner) -> None:
    """Raises if the weights of a run cannot be averaged, exchanged for a validation and stored.

    Args:
        runner: The runner of a training, with the model that it trains.

    Raises:
        ValueError: If it has two EMAHooks, its model is sharded otherwise than by torch's FSDP, or it does not
            save all of it through hooks.
    """
    hooks = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    if len(hooks) > 1:
        raise ValueError(
            f'the run has {len(hooks)} EMAHooks, and would save the average of one as the raw weights of '
            'the other. Leave out all but one of them in custom_hooks, such as that of the base config.'
        )
    for engine, reason in _obstacles(runner):
        raise ValueError(
            f'the EMAHook does not work with {engine}: {reason}. It works with the usual Runner, also '
            'with MMDistributedDataParallel, and with FlexibleRunner and SingleDeviceStrategy or '
            'DDPStrategy; in several processes, shard=True there leaves each a part of the average only; '
            'with FSDPStrategy; and with fully_shard (FSDP2) by the strategy of '
            'docs/scale.md.'
        )


def _obstacles(runner: Runner) -> Iterator[tuple[str, str]]:
    """Yields the engines that no average can be kept with, and why."""
    for name in _base_names(getattr(runner, 'strategy', None)) & _STRATEGIES.keys():
        yield _STRATEGIES[name], 'its strategy saves and resumes without the hooks, so that the average would be lost'
    sharded = 'each process holds a part of the weights only'
    for parameter in runner.model.parameters():
        if hasattr(parameter, 'ds_tensor'):
            yield 'DeepSpeed ZeRO-3', sharded
        if 'DTensor' in _base_names(parameter) and not is_fully_sharded(runner.model):
            yield 'DTensor', sharded
    if is_fully_sharded(runner.model):
        yield from (('FSDP', reason) for reason in _obstacles_of_parts(runner))


def _obstacles_of_parts(runner: Runner) -> Iterator[str]:
    """Yields why the parts that torch makes of a model cannot be averaged or saved."""
    is_flat = bool(flat_handles(runner.model))
    if is_flat and (form := state_dict_type(runner.model)) not in _STATE_DICT_TYPES:
        yield f"its files would have the form {form.name}. Set state_dict_cfg='full' or 'local'"
    strategy = getattr(runner, 'strategy', runner)
    saves_whole = is_flat and 'FSDPStrategy' in _base_names(strategy)
    if type(strategy).save_checkpoint.__module__.startswith('mmengine.') and not saves_whole:
        yield f'{type(strategy).__name__} does not save all of the model. Use a strategy of docs/scale.md'
    for kind in (hook.ema_cfg['type'] for hook in runner.hooks if isinstance(hook, EMAHook)):
        if not issubclass(MODELS.get(kind) if isinstance(kind, str) else kind, ExpMomentumEMA):
            yield f"{kind} averages whole tensors. Set ema_type='mmyolo_ema.ExpMomentumEMA'"


def _base_names(value: object) -> set[str]:
    return {kind.__name__ for kind in type(value).__mro__}
