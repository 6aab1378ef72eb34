"""What several averages of one model cost, and one that is kept in another dtype than the model's."""

import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

from mmdet.models.layers import ExpMomentumEMA as MMDetExpMomentumEMA
from torch import nn

from benchmarks.contenders import NO_RAMP, averaged_pairs, bare_update
from benchmarks.steps import BARE, MOMENTUM, training_step_of
from benchmarks.timing import Timing, measured, pooled
from mmyolo_ema.models import ExpMomentumEMA
from mmyolo_ema.models.exp_momentum_ema import update_together

_ONE, _FOUR, _HALF = '1 average', '4 averages', 'float32 average of bfloat16'
#: At most so many times what another step takes, by the name of a step: the other's name, and the number.
BARS = {_FOUR: (BARE, 4.2), _HALF: (_ONE, 2.5)}
# How often the averages are made anew: where one happens to lie in memory makes a step up to 5 % slower.
_PLACES = 5


@dataclass
class AveragesCost:
    """What steps of several averages cost on one detector.

    Attributes:
        detector: Name of the detector.
        weights: Number of averaged elements.
        steps: Time of an update of all averages, by what they are; the bare call on one of them first.
    """

    detector: str
    weights: int
    steps: dict[str, Timing]

    def ratio(self, name: str, to: str = BARE) -> float:
        """Returns the time of a step as a multiple of another's."""
        return self.steps[name].median / self.steps[to].median


def measure_averages(detector: str, model: nn.Module, rounds: int, device: str = 'cpu') -> AveragesCost:
    """Measures steps of 1, 2 and 4 averages that follow one model, and of one in float32 that follows it in bfloat16.

    As in :func:`benchmarks.steps.measure_steps`, the model's weights are changed before each, and all take turns. On a
    CPU the time is the processor's.

    Args:
        detector: Name of the detector, for the report.
        model: The detector. It is left as it is.
        rounds: How often a step is timed, at least 1.
        device: 'cpu' or 'cuda'. Defaults to 'cpu'.
    """
    model = deepcopy(model).to(device)
    half = deepcopy(model).bfloat16()
    change, change_half = training_step_of(model), training_step_of(half)
    places = min(rounds, _PLACES)
    clock = time.process_time if device == 'cpu' else time.perf_counter
    steps = pooled(
        measured(_steps(model, half), -(-rounds // places), device, lambda: (change(), change_half()), clock=clock)
        for _ in range(places)
    )
    return AveragesCost(detector, sum(source.numel() for _, source in averaged_pairs(model, model, True)), steps)


def _steps(model: nn.Module, half: nn.Module) -> dict[str, Callable[[], object]]:
    averages, of_mmdet = (
        [kind(model, MOMENTUM, NO_RAMP, update_buffers=True) for _ in range(4)]
        for kind in (ExpMomentumEMA, MMDetExpMomentumEMA)
    )
    wide = ExpMomentumEMA(half, MOMENTUM, NO_RAMP, update_buffers=True, dtype='float32')
    return {
        BARE: bare_update(averaged_pairs(deepcopy(model), model, True), MOMENTUM),
        _ONE: partial(averages[0].update_parameters, model),
        '2 averages': partial(update_together, averages[:2], model),
        _FOUR: partial(update_together, averages, model),
        "4 of mmdet's class": partial(update_together, of_mmdet, model),
        _HALF: lambda: wide.update_parameters(half),
    }
