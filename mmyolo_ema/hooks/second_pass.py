"""Validating once more within one validation."""

from typing import Any

from mmengine.runner import BaseLoop, Runner

__all__ = ['validate_once_more']


class _IterationsOnly:
    """A runner whose hooks hear of a loop's iterations, so that they show its progress, and of nothing else."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        if fn_name in ('before_val_iter', 'after_val_iter'):
            self._runner.call_hook(fn_name, **kwargs)


def validate_once_more(loop: BaseLoop) -> dict:
    """Runs a validation loop inside a validation that is under way, and returns its metrics.

    The loop itself runs, whatever its class, with the weights that are in the model. Hooks take part in each
    iteration, but do not hear that a validation begins or ends: that is what the one under way is for.
    """
    runner, run = loop._runner, type(loop).run
    loop._runner = _IterationsOnly(runner)
    try:
        return run(loop)
    finally:
        loop._runner = runner
