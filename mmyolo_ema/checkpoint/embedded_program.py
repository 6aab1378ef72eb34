"""The text in a checkpoint that MMEngine runs as a Python program when a run resumes from it: ``meta['config']``.

MMEngine 0.x looks there for the number of GPUs of a run of MMCV 1. It writes its own config under ``meta['cfg']``,
which nobody runs.
"""

from typing import Any

_KEY = 'config'


def meta_without_program(content: dict[str, Any]) -> dict[str, Any]:
    """Returns what a checkpoint says about itself, without the program; empty if it says nothing."""
    meta = content.get('meta')
    return {key: value for key, value in meta.items() if key != _KEY} if isinstance(meta, dict) else {}


def check_no_program(content: dict[str, Any]) -> None:
    """Raises ValueError if a checkpoint to resume from holds such a text."""
    meta = content.get('meta')
    if isinstance(meta, dict) and _KEY in meta:
        raise ValueError(
            "it holds a text under meta['config'], which MMEngine would run as a program when it resumes. "
            'To start anew from its weights, use load_from; to resume, remove that entry'
        )
