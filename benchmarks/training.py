"""What an average adds to a training step, and to a whole training run."""

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models import BaseDetector
from mmdet.testing import demo_mm_inputs

from benchmarks.contenders import OURS, makers
from benchmarks.steps import MOMENTUM
from benchmarks.timing import Timing, interleaved

# Images in a step: what two cores do in seconds, and what MMDetection trains RTMDet with on a GPU.
BATCH_SIZE = {'cpu': 2, 'cuda': 32}
IMAGE_SIZE = 640


@dataclass(frozen=True)
class TrainingStepCost:
    """The time of a training step, and of the update of the average after it.

    Attributes:
        batch_size: Number of images.
        image_size: Their height and width in pixels.
        without: A training step without an average: forward, backward, optimizer.
        with_average: A training step and the update of the average.
        update: The update alone, right after a training step.
    """

    batch_size: int
    image_size: int
    without: Timing
    with_average: Timing
    update: Timing


def measure_training_step(model: BaseDetector, rounds: int, device: str = 'cpu') -> TrainingStepCost:
    """Times training steps of a detector on random images, with and without its average, in turns.

    Args:
        model: The detector; it is trained.
        rounds: How often each is timed, at least 1.
        device: 'cpu' or 'cuda'. Defaults to 'cpu'.
    """
    model = model.to(device).train()
    batch_size, image_size = BATCH_SIZE[device], IMAGE_SIZE
    step = _training_step(model, batch_size, image_size)
    update = makers(True)[OURS](model, MOMENTUM, True).update

    def step_and_update() -> None:
        step()
        update()

    steps = interleaved({'without': step, 'with': step_and_update}, rounds, device, warm_up=1)
    updates = interleaved({'update': update}, rounds, device, before=step)
    return TrainingStepCost(batch_size, image_size, steps['without'], steps['with'], updates['update'])


def random_batch(batch_size: int, image_size: int) -> dict[str, Any]:
    """Returns random images with ten boxes each, as a data loader yields them."""
    batch = demo_mm_inputs(batch_size, [(3, image_size, image_size)] * batch_size, num_items=[10] * batch_size)
    for sample in batch['data_samples']:
        sample.gt_instances.labels.zero_()  # the one class that every detector has
    return batch


def _training_step(model: BaseDetector, batch_size: int, image_size: int) -> Callable[[], None]:
    batch = random_batch(batch_size, image_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def step() -> None:
        data = model.data_preprocessor(batch, training=True)
        loss, _ = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


@dataclass(frozen=True)
class RunCost:
    """What a training run took.

    Attributes:
        seconds: Wall time.
        peak_memory: The most memory that its process held, in bytes.
    """

    seconds: list[float]
    peak_memory: list[int]


def measure_runs(commands: dict[str, list[str]], rounds: int) -> dict[str, RunCost]:
    """Runs commands in turns, each in a process of its own.

    Args:
        commands: What to run, by name.
        rounds: How often each is run.

    Raises:
        RuntimeError: If one fails, with the last line that it printed.
    """
    costs = {name: RunCost([], []) for name in commands}
    order, shuffle = list(commands), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            seconds, peak_memory = _run(commands[name])
            costs[name].seconds.append(seconds)
            costs[name].peak_memory.append(peak_memory)
    return costs


# A process starts with the peak of the one that it is forked from, so a small one starts it, and tells at the end.
_MEASURED = """
import resource, subprocess, sys, time
start = time.perf_counter()
status = subprocess.call(sys.argv[1:])
print(time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(status)
"""


def _run(command: list[str]) -> tuple[float, int]:
    """Runs a command and returns its wall time in seconds and its peak memory in bytes."""
    done = subprocess.run(
        [sys.executable, '-c', _MEASURED, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors='replace',
    )
    *said, measured = done.stdout.strip().splitlines()
    if done.returncode != 0:
        raise RuntimeError(
            f'{" ".join(command)} failed with status {done.returncode}: {said[-1] if said else "it printed nothing"}'
        )
    seconds, peak = measured.split()
    return float(seconds), int(peak) * 1024
