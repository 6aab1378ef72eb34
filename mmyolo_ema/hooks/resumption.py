"""Telling a checkpoint that a run goes on from, from one that it only starts from."""

import sys
from types import FrameType
from typing import Optional

from mmengine.runner import Runner

from mmyolo_ema._upstream import is_made_to_resume


def is_resumed(runner: Runner) -> bool:
    """Whether the checkpoint that is being loaded is one to go on from.

    Hooks are not told, and the runner's own flag says only what it was made with: ``runner.resume`` may be called by
    anybody, and so may ``runner.load_checkpoint`` in a run that resumed. So the calls that led here are looked at.

    Args:
        runner: The runner that loads. Its flag counts where none of its methods is at work.
    """
    frame: Optional[FrameType] = sys._getframe(1)
    methods = set()
    while frame is not None:
        if frame.f_code.co_name in ('resume', 'load_checkpoint') and frame.f_locals.get('self') is runner:
            methods.add(frame.f_code.co_name)
        frame = frame.f_back
    return 'resume' in methods if methods else is_made_to_resume(runner)
