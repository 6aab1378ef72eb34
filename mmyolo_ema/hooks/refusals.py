"""Runs that would go on with wrong weights, or lose them, and are refused at their start."""

from collections.abc import Iterator

from mmengine.hooks import EMAHook
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmyolo_ema.models import ExpMomentumEMA
from mmyolo_ema.models.fully_sharded import is_fully_sharded

# By names, so that no engine needs to be installed.
_STRATEGIES = dict(DeepSpeedStrategy='DeepSpeed', ColossalAIStrategy='ColossalAI')
_WRAPPERS = dict(FullyShardedDataParallel='FSDP (FullyShardedDataParallel)')
_FSDP2 = 'FSDP2 (fully_shard)'


def check_run(runner: Runner) -> None:
    """Raises if the weights of a run cannot be averaged, exchanged for a validation and stored.

    Args:
        runner: The runner of a training, with the model that it trains.

    Raises:
        ValueError: If it has two EMAHooks, its model is sharded otherwise than by fully_shard, or it does not save
            all of it through hooks.
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
            'and with fully_shard (FSDP2) by the strategy of docs/scale.md.'
        )


def _obstacles(runner: Runner) -> Iterator[tuple[str, str]]:
    """Yields the engines that no average can be kept with, and why."""
    for name in _base_names(getattr(runner, 'strategy', None)) & _STRATEGIES.keys():
        yield _STRATEGIES[name], 'its strategy saves and resumes without the hooks, so that the average would be lost'
    sharded = 'each process holds a part of the weights only'
    for module in runner.model.modules():
        for name in _base_names(module) & _WRAPPERS.keys():
            yield _WRAPPERS[name], sharded
    for parameter in runner.model.parameters():
        if hasattr(parameter, 'ds_tensor'):
            yield 'DeepSpeed ZeRO-3', sharded
        if 'DTensor' in _base_names(parameter) and not is_fully_sharded(runner.model):
            yield 'DTensor', sharded
    if is_fully_sharded(runner.model):
        yield from ((_FSDP2, reason) for reason in _obstacles_of_parts(runner))


def _obstacles_of_parts(runner: Runner) -> Iterator[str]:
    """Yields why the parts that fully_shard makes of a model cannot be averaged or saved."""
    saver = type(getattr(runner, 'strategy', runner))
    if saver.save_checkpoint.__module__.startswith('mmengine.'):
        yield f'{saver.__name__} does not save all of the model. Use the strategy of docs/scale.md'
    for kind in (hook.ema_cfg['type'] for hook in runner.hooks if isinstance(hook, EMAHook)):
        if not issubclass(MODELS.get(kind) if isinstance(kind, str) else kind, ExpMomentumEMA):
            yield f"{kind} averages whole tensors. Set ema_type='mmyolo_ema.ExpMomentumEMA'"


def _base_names(value: object) -> set[str]:
    return {kind.__name__ for kind in type(value).__mro__}
