"""Timing functions against each other, fairly."""

import random
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

# What a first call does once (a plan, a workspace, a page of memory) is not what the others cost.
_WARM_UP = 3
# At least as fast as the clock of any GPU.
_CYCLES_PER_SECOND = 2.5e9


@dataclass(frozen=True)
class Timing:
    """How long a call takes, in seconds: the median of all calls, and the quartiles as its spread."""

    lower: float
    median: float
    upper: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> 'Timing':
        """Returns the quartiles of measured times."""
        return cls(*(float(value) for value in np.percentile(list(seconds), (25, 50, 75))))


def interleaved(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str = 'cpu',
    before: Callable[[], object] = lambda: None,
    warm_up: int = _WARM_UP,
) -> dict[str, Timing]:
    """Times functions in turns, so that whatever else the machine does hits all of them alike.

    Each round calls each function once, in a random order, so that none profits from what another one left in the
    caches. On a GPU a call ends when the GPU has done what the call asked for.

    Args:
        functions: What to time, by name.
        rounds: How often each is timed, at least 1.
        device: 'cpu', or the name of the GPU that they use. Defaults to 'cpu'.
        before: Is called before each call and not timed: what happens between two calls in real use. Defaults to
            nothing.
        warm_up: Calls of each before the first round, which are not timed. Defaults to 3.

    Returns:
        The time of a call, by name, in the order of ``functions``.

    Example:
        >>> times = interleaved({'list': lambda: list(range(9)), 'tuple': lambda: tuple(range(9))}, rounds=3)
        >>> 0 < times['list'].lower <= times['list'].median
        True
    """
    return pooled([measured(functions, rounds, device, before, warm_up)])


def measured(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str = 'cpu',
    before: Callable[[], object] = lambda: None,
    warm_up: int = _WARM_UP,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Returns each single time, in seconds, of what :func:`interleaved` sums up.

    It takes the same arguments, and a clock: ``time.thread_time`` leaves out what the processor does for others.
    """
    for function in functions.values():
        for _ in range(warm_up):
            function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for name in _turns(functions, rounds):
        before()
        synchronize(device)
        start = clock()
        functions[name]()
        synchronize(device)
        seconds[name].append(clock() - start)
    return seconds


def _turns(names: Iterable[str], rounds: int) -> Iterator[str]:
    """Yields each name once a round, in a random order."""
    order, shuffle = list(names), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        yield from order


def measured_apart(
    functions: Mapping[str, Callable[[], object]], rounds: int, device: str, before: Callable[[], object]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Returns the times of what a GPU and its host do in a call, apart, as they overlap in a training.

    The host's time, until the call returns, is that with an idle GPU. The GPU's is taken in another call, all of whose
    work is queued behind something else before the GPU comes to it, so that it waits for no host.

    Args:
        functions: What to time, by name; none may wait for the GPU.
        rounds: How often each is timed, at least 1.
        device: The name of the GPU that they use.
        before: As for :func:`interleaved`.

    Returns:
        Each single time of the host and of the GPU, in seconds, by name.
    """
    hosts: dict[str, list[float]] = {name: [] for name in functions}
    gpus: dict[str, list[float]] = {name: [] for name in functions}
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    for name in _turns(functions, rounds):
        before()
        synchronize(device)
        start = time.perf_counter()
        functions[name]()
        hosts[name].append(time.perf_counter() - start)

        before()
        torch.cuda._sleep(int((2 * hosts[name][-1] + 1e-3) * _CYCLES_PER_SECOND))
        begin.record()
        functions[name]()
        end.record()
        synchronize(device)
        gpus[name].append(begin.elapsed_time(end) / 1e3)
    return hosts, gpus


def pooled(parts: Iterable[dict[str, list[float]]]) -> dict[str, Timing]:
    """Sums up measurements of the same functions that were made at several times."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for part in parts:
        for name, values in part.items():
            seconds[name] += values
    return {name: Timing.of(values) for name, values in seconds.items()}


def synchronize(device: str) -> None:
    """Waits until a GPU has done everything that it was asked for."""
    if device != 'cpu':
        torch.cuda.synchronize(device)
