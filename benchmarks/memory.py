"""How much memory a call takes."""

import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from operator import itemgetter
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Memory:
    """Memory of tensors that a call took, in bytes: the most at any moment, and what its result holds."""

    peak: int
    held: int


def memory_of(function: Callable[[], object], device: str = 'cpu') -> Memory:
    """Calls a function and returns the memory that tensors took meanwhile, beyond what was taken before.

    Args:
        function: What to call. Its result is kept until the memory has been read.
        device: The device whose memory is meant. Defaults to 'cpu'.

    Example:
        >>> import torch
        >>> memory_of(lambda: torch.zeros(256) + torch.zeros(256))
        Memory(peak=3072, held=1024)
    """
    return _on_cpu(function) if device == 'cpu' else _on_gpu(function, device)


def _on_cpu(function: Callable[[], object]) -> Memory:
    # The library behind the profiler says hello on the terminal unless it is told not to.
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / 'trace.json'
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())['traceEvents']
    del result
    changes = sorted((event for event in events if event['name'] == '[memory]'), key=itemgetter('ts'))
    totals = list(accumulate((change['args']['Bytes'] for change in changes), initial=0))
    return Memory(max(totals), totals[-1])


def _on_gpu(function: Callable[[], object], device: str) -> Memory:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = function()
    torch.cuda.synchronize(device)
    memory = Memory(torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before)
    del result
    return memory
