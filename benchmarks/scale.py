"""How the cost of a step grows with the number of tensors and with the number of weights."""

from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.contenders import OURS, averaged_pairs, limit_update, makers
from benchmarks.steps import LIMIT, MOMENTUM, training_step_of
from benchmarks.timing import Timing, interleaved

#: What is timed, as pairs of a number of tensors and a number of weights, by what grows.
SIZES = {
    'tensors': [(tensors, 10_000_000) for tensors in (100, 200, 500, 1_000, 2_000, 5_000, 10_000)],
    'weights': [(300, weights * 1_000_000) for weights in (1, 3, 10, 30, 100, 300, 1_000)],
}
_COMPARED = (OURS, 'mmengine')
# The model, two averages, and the two tensors of the limit; 4 bytes a weight.
_COPIES, _BYTES = 5, 4
# What the rest of the machine may need meanwhile.
_SPARED = 0.1
# A step of a thousand million weights takes half a second.
_WEIGHTS_TIMED = 2_000_000_000


@dataclass(frozen=True)
class ScalePoint:
    """The time of a step on a model of one size, by class.

    Attributes:
        tensors: Number of tensors, each in a module of its own.
        weights: Number of their elements.
        steps: Time of an update, by name.
    """

    tensors: int
    weights: int
    steps: dict[str, Timing]


def fits(weights: int, device: str) -> bool:
    """Whether there is memory for the models and averages that :func:`measure_scale` compares.

    Args:
        weights: Number of weights of the model.
        device: 'cpu' or 'cuda'.
    """
    return weights * _COPIES * _BYTES < (1 - _SPARED) * _free_memory(device)


def measure_scale(tensors: int, weights: int, rounds: int, device: str = 'cpu') -> ScalePoint:
    """Times steps on a model of a given size.

    Args:
        tensors: Number of tensors.
        weights: Number of their elements together, a multiple of ``tensors`` or rounded down to one.
        rounds: How often a step is timed; less often for a large model, but five times at least.
        device: 'cpu' or 'cuda'. Defaults to 'cpu'.
    """
    model = nn.Sequential(*(nn.Linear(weights // tensors, 1, bias=False, device=device) for _ in range(tensors)))
    contenders = {name: makers(True)[name](model, MOMENTUM, True) for name in _COMPARED}
    steps = {name: contender.update for name, contender in contenders.items()}
    limit, source = limit_update(averaged_pairs(contenders[OURS].module, model, True), MOMENTUM)
    rounds = max(5, min(rounds, _WEIGHTS_TIMED // weights))
    times = interleaved({**steps, LIMIT: limit}, rounds, device, before=training_step_of(model, source))
    return ScalePoint(tensors, weights, times)


def _free_memory(device: str) -> int:
    """Returns the bytes of memory that can be had on a device."""
    if device != 'cpu':
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available
