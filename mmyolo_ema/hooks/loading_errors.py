"""What one process raises while its runner loads a checkpoint, all raise."""

from contextlib import nullcontext
from typing import Any

from mmengine.runner import Runner

from mmyolo_ema._upstream import start_of
from mmyolo_ema.models.fully_sharded import is_fully_sharded
from mmyolo_ema.processes import raised_by_all


def share_loading_errors(runner: Runner) -> None:
    """Makes all processes raise what one of them raises when their runners load a checkpoint, or resume from it.

    Not where the loading itself makes them wait for each other: from an address, and for a model that FSDP has cut.

    Args:
        runner: A runner that has loaded nothing yet. One of strategies loads before its hooks hear of the run.
    """
    if 'load_or_resume' in vars(runner):
        return
    load_or_resume = runner.load_or_resume

    def load_or_resume_alike(*args: Any, **kwargs: Any) -> Any:
        vars(runner).pop('load_or_resume', None)  # a runner loads once
        waits = '://' in str(start_of(runner)) or is_fully_sharded(runner.model)
        with nullcontext() if waits else raised_by_all():
            return load_or_resume(*args, **kwargs)

    runner.load_or_resume = load_or_resume_alike
