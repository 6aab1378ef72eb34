"""What an average costs: a step, the exchange for a validation, making it, saving it, and its memory."""

import random
import tempfile
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from mmengine.hooks import EMAHook
from torch import Tensor, nn

from benchmarks.contenders import OURS, Contender, Maker, averaged_pairs, bare_update, limit_update, makers
from benchmarks.memory import Memory, memory_of
from benchmarks.timing import Timing, interleaved, measured, measured_apart, pooled
from mmyolo_ema.hooks.finite_check import FiniteCheck
from mmyolo_ema.hooks.weight_swap import WeightSwap

#: One fused call over prepared lists: a step that finds and notices nothing.
BARE = 'bare _foreach_lerp_'
#: One call over one tensor.
LIMIT = 'limit'
MOMENTUM = 0.0002
# The classes that MMEngine's hook works with.
_SWAPPED = (OURS, 'mmdet', 'mmengine')
# How often the averages are made anew, and how often a step is timed in between.
_PLACES, _ROUNDS_IN_A_PLACE = 10, 5
# For what takes long and is done seldom.
_FEW_ROUNDS = 5


@dataclass
class Cost:
    """What the average of one class costs on one detector; for the limits, and without buffers, there is only a step.

    Attributes:
        step: Time of an update, past the first, until all is done.
        host: On a GPU, the time until the call of an update returns.
        gpu: On a GPU, the time of its work there.
        check: Time to look for NaN and infinity before an update; None for classes that do not.
        swap: Time to exchange average and model for a validation, and back; None where no hook does so.
        create: Time to make the average, first update included.
        save: Time to write its state to a file.
        average_memory: What making it takes, and what it holds.
        step_memory: What an update takes meanwhile.
        swap_memory: What the exchange takes meanwhile.
    """

    step: Timing
    host: Optional[Timing] = None
    gpu: Optional[Timing] = None
    check: Optional[Timing] = None
    swap: Optional[Timing] = None
    create: Optional[Timing] = None
    save: Optional[Timing] = None
    average_memory: Optional[Memory] = None
    step_memory: Optional[Memory] = None
    swap_memory: Optional[Memory] = None


@dataclass
class StepCosts:
    """What averaging one detector costs, by class, and the least that it could cost.

    Attributes:
        detector: Name of the detector.
        update_buffers: Whether persistent floating buffers are averaged too.
        tensors: Number of distinct tensors that are averaged.
        weights: Number of their elements.
        costs: By name of the class, ours first, the limits last.
    """

    detector: str
    update_buffers: bool
    tensors: int
    weights: int
    costs: dict[str, Cost] = field(default_factory=dict)

    def ratio(self, name: str, to: str) -> float:
        """Returns the time of a step as a multiple of another's: on a GPU, of its work there."""
        return self._work(name) / self._work(to)

    def _work(self, name: str) -> float:
        cost = self.costs[name]
        return (cost.gpu or cost.step).median


def measure_steps(detector: str, model: nn.Module, update_buffers: bool, rounds: int, device: str = 'cpu') -> StepCosts:
    """Measures what each class costs on a detector, all in turns in this process.

    What depends on the average's size alone is measured with ``update_buffers`` only: the check, the exchange, making,
    saving, memory.

    All averages follow one model, each in memory of its own. Before each update the weights of the model are changed,
    as an optimizer does it, so that they are as near to the processor as in a training, and the average as far away.
    The averages are made anew several times: where one happens to lie in memory makes a step up to 5 % slower.

    Args:
        detector: Name of the detector, for the report.
        model: The detector. It is left as it is.
        update_buffers: Whether its persistent floating buffers are averaged too.
        rounds: How often a step is timed, at least 1; what is done seldom is timed five times at most.
        device: 'cpu' or 'cuda'. Defaults to 'cpu'.
    """
    model = deepcopy(model).to(device)
    make = {name: partial(_make, maker, model, update_buffers) for name, maker in makers(update_buffers).items()}
    places = [
        _time_steps(make, model, update_buffers, len(part), device, random.Random(int(part[0])))
        for part in np.array_split(range(rounds), min(-(-rounds // _ROUNDS_IN_A_PLACE), _PLACES))
    ]
    steps, hosts, gpus = map(pooled, zip(*places))

    pairs = averaged_pairs(model, model, update_buffers)
    costs = StepCosts(detector, update_buffers, len(pairs), sum(source.numel() for _, source in pairs))
    costs.costs = {name: Cost(steps[name], hosts.get(name), gpus.get(name)) for name in (*make, BARE, LIMIT)}
    if update_buffers:
        _measure_surroundings(costs.costs, make, model, rounds, device)
    return costs


def _measure_surroundings(
    costs: dict[str, Cost], make: Mapping[str, Callable[[], Contender]], model: nn.Module, rounds: int, device: str
) -> None:
    """Adds what an average costs besides its steps."""
    few = min(rounds, _FEW_ROUNDS)
    contenders = {name: function() for name, function in make.items()}
    costs[OURS].check = interleaved(
        {OURS: FiniteCheck(model, model).look}, rounds, device, before=training_step_of(model)
    )[OURS]
    swaps = {name: swap_of(name, contenders[name], model) for name in _SWAPPED}
    for name, timing in interleaved(swaps, few, device).items():
        costs[name].swap = timing
        costs[name].swap_memory = memory_of(swaps[name], device)
    create = interleaved(make, few, device, warm_up=1)
    save = _time_saving(contenders, few, device)
    for name, contender in contenders.items():
        costs[name].create, costs[name].save = create[name], save[name]
        costs[name].average_memory = memory_of(make[name], device)
        costs[name].step_memory = memory_of(contender.update, device)


def _time_steps(
    make: Mapping[str, Callable[[], Contender]],
    model: nn.Module,
    update_buffers: bool,
    rounds: int,
    device: str,
    order: random.Random,
) -> tuple[dict[str, list[float]], ...]:
    """Returns the times of steps of averages that are made for this, in a random order: all, the host's, the GPU's."""
    names = [*make, BARE, LIMIT]
    order.shuffle(names)
    steps: dict[str, Callable[[], object]] = {}
    for name in names:
        if name in make:
            steps[name] = make[name]().update
        else:
            pairs = averaged_pairs(deepcopy(model), model, update_buffers)
            if name == BARE:
                steps[name] = bare_update(pairs, MOMENTUM)
            else:
                steps[name], limit_source = limit_update(pairs, MOMENTUM)
    before = training_step_of(model, limit_source)
    whole = measured(steps, rounds, device, before)
    return (whole, *(({}, {}) if device == 'cpu' else measured_apart(steps, rounds, device, before)))


def training_step_of(model: nn.Module, *others: Tensor) -> Callable[[], object]:
    """Returns what changes all weights of a model, and other tensors, as little as a late training step does."""
    weights = [tensor.detach() for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()]
    return lambda: torch._foreach_add_([*weights, *others], 1e-9)


def _make(maker: Maker, model: nn.Module, update_buffers: bool) -> Contender:
    contender = maker(model, MOMENTUM, update_buffers)
    contender.update()
    return contender


def swap_of(name: str, contender: Contender, model: nn.Module) -> Callable[[], object]:
    """Returns what our hook, or MMEngine's, does before a validation and after it."""

    def lend() -> None:
        swap = WeightSwap(contender.average.get_submodule('module'), model)
        swap.swap_in()
        swap.swap_out()

    def exchange() -> None:
        hook.before_val_epoch(None)
        hook.after_val_epoch(None)

    hook = EMAHook()
    hook.ema_model, hook.src_model = contender.average, model
    return lend if name == OURS else exchange


def _time_saving(contenders: dict[str, Contender], rounds: int, device: str) -> dict[str, Timing]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'average.pth'
        saves = {name: partial(_save, contender.average, path) for name, contender in contenders.items()}
        return interleaved(saves, rounds, device, warm_up=1)


def _save(average: nn.Module, path: Path) -> None:
    torch.save(average.state_dict(), path)
