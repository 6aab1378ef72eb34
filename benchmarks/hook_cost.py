"""What the hook adds to the steps of a training, in MMEngine's runner."""

import logging
import random
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any, Optional

from mmdet.models import BaseDetector
from mmengine.hooks import EMAHook as MMEngineEMAHook
from mmengine.hooks import Hook
from mmengine.runner import Runner

from benchmarks.contenders import OURS
from benchmarks.steps import MOMENTUM
from benchmarks.timing import Timing, synchronize
from benchmarks.training import random_batch
from mmyolo_ema.hooks import EMAHook

NO_HOOK = 'no hook'
# Steps between two waits for the GPU: a wait after each would take away what the host does meanwhile.
_BLOCK, _WARM_UP_BLOCK = 20, 5
_FEWEST_ROUNDS = 2


@dataclass(frozen=True)
class HookCost:
    """What a hook adds to a training step.

    Attributes:
        detector: Name of the detector.
        batch_size: Number of images in a step.
        image_size: Their height and width in pixels.
        blocks: How many blocks of 20 steps were timed with each hook.
        step: Time of a step, by hook: a block's time over its number of steps.
        added: What a hook adds to a step: its block's time less that of the same round without a hook.
        host: Time until the hook's call returns, by hook.
    """

    detector: str
    batch_size: int
    image_size: int
    blocks: int
    step: dict[str, Timing]
    added: dict[str, Timing]
    host: dict[str, Timing]

    def share(self, name: str) -> float:
        """Returns what a hook adds, as a share of a step without one."""
        return self.added[name].median / self.step[NO_HOOK].median


def measure_hook_cost(
    detector: str, model: BaseDetector, batch_size: int, image_size: int, seconds: float, device: str = 'cpu'
) -> HookCost:
    """Trains a detector on random images, and changes the hook that averages it after each block of 20 steps.

    One runner, one model and one optimizer, so that nothing but the hook differs. On a GPU it trains in mixed
    precision. All hooks take their turn in each round, in a random order.

    Args:
        detector: Name of the detector, for the report.
        model: The detector; it is trained.
        batch_size: Number of images in a step.
        image_size: Their height and width in pixels.
        seconds: About how long to measure; two rounds at least, after one of fewer steps as a warm-up.
        device: 'cpu' or 'cuda'. Defaults to 'cpu'.
    """
    turns = Turns(seconds, device)
    with tempfile.TemporaryDirectory() as folder:
        runner = Runner(
            model,
            work_dir=folder,
            train_dataloader=dict(
                batch_size=batch_size,
                dataset=_samples(batch_size, image_size),
                sampler=dict(type='InfiniteSampler', shuffle=False),
                collate_fn=dict(type='pseudo_collate'),
            ),
            train_cfg=dict(by_epoch=False, max_iters=10**6),
            optim_wrapper=dict(
                type='OptimWrapper' if device == 'cpu' else 'AmpOptimWrapper', optimizer=dict(type='AdamW', lr=1e-6)
            ),
            default_hooks=dict(checkpoint=None, logger=dict(type='LoggerHook', interval=50)),
            custom_hooks=[turns],
            default_scope='mmdet',
            experiment_name=f'{detector}-{batch_size}-{time.time()}',
            log_level=logging.ERROR,
        )
        runner.train()
    return turns.cost(detector, batch_size, image_size)


def _samples(number: int, image_size: int) -> list[dict[str, Any]]:
    """Returns random images with their boxes, as a data set yields them."""
    batch = random_batch(number, image_size)
    return [dict(inputs=image, data_samples=sample) for image, sample in zip(batch['inputs'], batch['data_samples'])]


class Turns(Hook):
    """Hands each block of steps to another hook, and times it.

    Args:
        seconds: About how long to go on.
        device: 'cpu' or 'cuda'.
    """

    priority = 49

    def __init__(self, seconds: float, device: str) -> None:
        options: dict[str, Any] = dict(momentum=MOMENTUM, update_buffers=True)
        ours: dict[str, Any] = dict(options, ema_type='mmyolo_ema.ExpMomentumEMA', gamma=2000)
        self._hooks: dict[str, Optional[MMEngineEMAHook]] = {
            NO_HOOK: None,
            'mmengine': MMEngineEMAHook(ema_type='mmengine.ExponentialMovingAverage', **options),
            f'{OURS} without check': EMAHook(skip_nonfinite=False, **ours),
            OURS: EMAHook(**ours),
        }
        self._seconds, self._device = seconds, device
        self._order, self._shuffle = list(self._hooks), random.Random(0).shuffle
        self._rounds, self._turn, self._steps = -1, 0, 0  # the first round is warm-up
        self._blocks: dict[str, list[float]] = defaultdict(list)
        self._host: dict[str, list[float]] = defaultdict(list)

    def before_run(self, runner: Runner) -> None:
        """Makes all averages."""
        for hook in filter(None, self._hooks.values()):
            hook.before_run(runner)

    def before_train(self, runner: Runner) -> None:
        """Starts all hooks, and the clock."""
        for hook in filter(None, self._hooks.values()):
            hook.before_train(runner)
        self._end = time.perf_counter() + self._seconds
        self._start_block()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict[str, Any]] = None
    ) -> None:
        """Lets the hook whose turn it is do its work; ends a block, a round or the training."""
        name = self._order[self._turn]
        hook = self._hooks[name]
        start = time.perf_counter()
        if hook is not None:
            hook.after_train_iter(runner, batch_idx, data_batch, outputs)
        self._host[name].append(time.perf_counter() - start)
        self._steps += 1
        if self._steps < (_BLOCK if self._rounds >= 0 else _WARM_UP_BLOCK):
            return
        synchronize(self._device)
        self._blocks[name].append((time.perf_counter() - self._block_start) / self._steps)
        self._turn = (self._turn + 1) % len(self._order)
        if self._turn == 0:
            self._rounds += 1
            self._shuffle(self._order)
            runner.train_loop.stop_training = self._rounds >= _FEWEST_ROUNDS and time.perf_counter() > self._end
        self._start_block()

    def _start_block(self) -> None:
        synchronize(self._device)
        self._steps = 0
        self._block_start = time.perf_counter()

    def cost(self, detector: str, batch_size: int, image_size: int) -> HookCost:
        """Returns what was measured, without the first round, in which memory and plans are made."""
        blocks = {name: self._blocks[name][1:] for name in self._hooks}
        added = {
            name: [block - without for block, without in zip(times, blocks[NO_HOOK])]
            for name, times in blocks.items()
            if name != NO_HOOK
        }
        host = {name: self._host[name][_WARM_UP_BLOCK:] for name in added}
        return HookCost(
            detector,
            batch_size,
            image_size,
            self._rounds,
            *({name: Timing.of(times) for name, times in kind.items()} for kind in (blocks, added, host)),
        )
