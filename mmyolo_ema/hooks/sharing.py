"""Averages that are shared out among processes (``shard=True``): when they are whole, and with whom they cannot be."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Optional

from mmengine.dist import get_world_size, is_main_process
from mmengine.model import BaseAveragedModel, MMSeparateDistributedDataParallel
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmyolo_ema.models import ExpMomentumEMA
from mmyolo_ema.models.flat_parts import is_saved_in_parts
from mmyolo_ema.models.fully_sharded import LocalParts, check_cut, is_fully_sharded
from mmyolo_ema.models.shards import AnyShards, Shards
from mmyolo_ema.models.tensor_references import tensor_references


def check_sharing(runner: Runner, averages: Iterable[BaseAveragedModel]) -> None:
    """Raises ValueError if averages are to be shared out among processes that may hold other weights each."""
    if is_fully_sharded(runner.model):
        check_cut(runner.model)
        if is_saved_in_parts(runner.model) and any(getattr(average, 'save_dtype', None) for average in averages):
            raise ValueError(
                "save_dtype is not for state_dict_cfg='local', which stores averages in the model's dtype: leave "
                "it out, or set state_dict_cfg='full'"
            )
        return
    if get_world_size() == 1 or not any(_is_shared(average) for average in averages):
        return
    wrapper = runner.model
    if not isinstance(wrapper, (DistributedDataParallel, MMSeparateDistributedDataParallel)):
        raise ValueError(
            'shard=True of the EMAHook is for processes that train one model under '
            f'MMDistributedDataParallel, but it is in a {type(wrapper).__name__}. Leave shard out.'
        )
    ignored = [
        name
        for module in wrapper.modules()
        if isinstance(module, DistributedDataParallel)
        for name, _ in module.module.named_parameters()
        if name in module.parameters_to_ignore
    ]
    if ignored:
        raise ValueError(
            'shard=True of the EMAHook needs equal weights in all processes, but '
            f'DistributedDataParallel is told to ignore {ignored[0]}. Leave shard out.'
        )


def share_out(averages: Iterable[BaseAveragedModel], model: nn.Module) -> None:
    """Leaves this process its part of the averages that are to be shared out. All processes must call this."""
    for average in averages:
        if _is_shared(average):
            average.share_out(model)


def gather(averages: Iterable[BaseAveragedModel], also_cut: bool = False) -> None:
    """Makes averages that are shared out whole on all processes, which must all call this.

    Those of a model that FSDP cuts are left as they are without ``also_cut``: a validation needs their parts only.
    """
    for average in averages:
        if _is_shared(average) and (also_cut or isinstance(average.shards, Shards)):
            average.gather()


@contextmanager
def whole_on_main(averages: Iterable[BaseAveragedModel]) -> Iterator[None]:
    """Makes averages of a model that FSDP cuts whole in the main process, for a file. All processes must call this."""
    cut = [(average, parts) for average in averages if isinstance(parts := shards_of(average), LocalParts)]
    try:
        for average, parts in cut:
            parts.gather(is_main_process())
            average.shards = None if is_main_process() else parts
        yield
    finally:
        for average, parts in cut:
            average.shards = parts
            parts.drop()


def shards_of(average: BaseAveragedModel) -> Optional[AnyShards]:
    """Returns what this process has of an average that is shared out now; None for one that is whole."""
    return average.shards if _is_shared(average) else None


def own_parameters(
    averaged: nn.Module, model: nn.Module, shards: Optional[AnyShards]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields averaged parameters, each with the model's: together, the processes yield each element once."""
    sources = {name: reference.tensor for name, reference in tensor_references(model)}
    averages = {
        id(place.tensor): (name, place.tensor) for name, place in tensor_references(averaged) if place.is_parameter
    }
    for name, parameter in averages.values():
        if shards is None or (parameter not in shards and is_main_process()):
            yield parameter, sources[name]
        elif parameter in shards and shards.has_part(parameter):
            yield shards.own_part(parameter, sources[name])


def _is_shared(average: BaseAveragedModel) -> bool:
    return isinstance(average, ExpMomentumEMA) and average.shard
