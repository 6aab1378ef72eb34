"""Validating once more within one validation."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmyolo_ema._upstream import will_start_workers
from mmyolo_ema.hooks.structure import Structure
from mmyolo_ema.models.tensor_references import unwrap

_OF_AN_ITERATION = ('before_val_iter', 'after_val_iter')


def validate_once_more(runner: Runner, by: Hook) -> dict[str, Any]:
    """Runs the validation loop within a validation that is about to begin, and returns its metrics.

    The loop itself runs, whatever its class, with the weights that are in the model. Hooks take part in each
    iteration, so that they show its progress, but do not hear that a validation ends: that is what the one under way
    is for. What they would be told then are the metrics; a loop need not return them. It leaves the random numbers of
    the training as they would be without it.

    Args:
        runner: The runner that validates.
        by: The hook that asks, in its ``before_val_epoch``. Those after it have not heard yet that an epoch begins.
    """
    later = runner.hooks[runner.hooks.index(by) + 1 :]
    call_hook = runner.call_hook
    measured: dict[str, Any] = {}

    def call_some_hooks(fn_name: str, **kwargs: Any) -> None:
        if fn_name in _OF_AN_ITERATION:
            call_hook(fn_name, **kwargs)
        elif fn_name == 'before_val_epoch':
            for hook in later:
                hook.before_val_epoch(runner)
        elif fn_name == 'after_val_epoch':
            measured.update(kwargs.get('metrics') or {})

    loader = runner.val_loop.dataloader
    if will_start_workers(loader):
        iter(loader)  # draws its seed once for all passes, so not within the one that leaves no trace
    structure, training = Structure(unwrap(runner.model)), runner.model.training
    runner.call_hook = call_some_hooks
    try:
        with _same_random_numbers():
            runner.val_loop.run()
    finally:
        runner.call_hook = call_hook
        structure.restore()
        # What a layer keeps for evaluation, such as merged weights, must not serve the pass that follows.
        runner.model.train(training)
    return measured


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Gives the random generators back as they were; a data loader draws a seed each time it begins."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
