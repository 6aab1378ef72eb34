"""What an average costs each of several processes that share it out, beside one that each has whole."""

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.model import ExponentialMovingAverage
from torch import distributed, nn
from torch.multiprocessing import get_context

from benchmarks.contenders import Contender
from benchmarks.memory import memory_of
from benchmarks.steps import MOMENTUM, swap_of, training_step_of
from benchmarks.timing import Timing, measured
from mmyolo_ema.models import ExpMomentumEMA

#: How many processes share.
PROCESSES = (1, 2, 3)
_WHOLE, _SHARED, _GATHER, _SWAP = 'whole', 'shared', 'gather', "MMEngine's swap"
# What a validation takes is done seldom.
_FEW_ROUNDS = 5


@dataclass(frozen=True)
class SharingCost:
    """What averages cost each of some processes; a time is that of the slowest, for they wait for each other.

    An update's is the processor's time for its one thread.

    Attributes:
        detector: Name of the detector.
        processes: Number of processes, which communicate by gloo.
        whole: Time of an update of an average that each process has whole.
        shared: Time of an update of one that they share out.
        gather: Time to make that whole on all, as before a validation, and to share it out again.
        swap: Time that MMEngine's hook takes to swap weights for a validation, and back.
        whole_memory: Bytes that a whole average holds.
        shared_memory: The most bytes that a process holds of one that is shared out.
    """

    detector: str
    processes: int
    whole: Timing
    shared: Timing
    gather: Timing
    swap: Timing
    whole_memory: int
    shared_memory: int


def measure_sharing(detector: str, model: nn.Module, processes: int, rounds: int) -> SharingCost:
    """Measures averages in some processes, one thread each, which do the same at the same time.

    Args:
        detector: Name of the detector, for the report.
        model: The detector, on the CPU. It is left as it is.
        processes: How many processes to start.
        rounds: How often an update is timed, at least 1; what a validation takes is timed five times at most.
    """
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(processes, get_context('spawn')) as pool:
        of_process = partial(_measure, processes, str(Path(folder, 'store')), model, rounds)
        times, memories = zip(*pool.map(of_process, range(processes)))
    slowest = {name: Timing.of(np.max([part[name] for part in times], axis=0)) for name in times[0]}
    whole_memory, shared_memory = np.max(memories, axis=0)
    return SharingCost(
        detector,
        processes,
        slowest[_WHOLE],
        slowest[_SHARED],
        slowest[_GATHER],
        slowest[_SWAP],
        int(whole_memory),
        int(shared_memory),
    )


def _measure(
    processes: int, store: str, model: nn.Module, rounds: int, rank: int
) -> tuple[dict[str, list[float]], list[int]]:
    """Returns each single time by what was done, and the memory of a whole and a shared average."""
    torch.set_num_threads(1)
    distributed.init_process_group('gloo', init_method=f'file://{store}', rank=rank, world_size=processes)
    model = deepcopy(model)  # what comes from another process is in memory that all have in common
    step = training_step_of(model)
    averages = {name: _average(model, is_shared) for name, is_shared in ((_WHOLE, False), (_SHARED, True))}
    shared = averages[_SHARED]

    def before() -> None:
        step()
        distributed.barrier()

    def gather() -> None:
        shared.gather()
        shared.share_out(model)

    updates = {name: partial(average.update_parameters, model) for name, average in averages.items()}
    times = measured(updates, rounds, before=before, clock=time.thread_time)  # there may be fewer cores than processes
    memories = [memory_of(partial(_average, model, is_shared)).held for is_shared in (False, True)]
    theirs = ExponentialMovingAverage(model, MOMENTUM, update_buffers=True)
    swap = swap_of('mmengine', Contender(theirs, theirs.get_submodule('module'), lambda: None), model)
    times.update(measured({_GATHER: gather, _SWAP: swap}, min(rounds, _FEW_ROUNDS), before=before, warm_up=1))
    distributed.barrier()
    distributed.destroy_process_group()
    return times, memories


def _average(model: nn.Module, is_shared: bool) -> ExpMomentumEMA:
    average = ExpMomentumEMA(model, MOMENTUM, gamma=1e-3, update_buffers=True, shard=is_shared)
    average.update_parameters(model)
    return average
