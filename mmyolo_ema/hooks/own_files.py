"""Keeping MMEngine from deleting files that a checkpoint names: a resumed run deletes its earlier checkpoints only."""

import logging
from pathlib import Path
from typing import Any

from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmyolo_ema.hooks.resumption import is_resumed
from mmyolo_ema.printing import printable


def forget_other_files(runner: Runner, checkpoint: dict[str, Any]) -> None:
    """Drops what a checkpoint tells MMEngine's CheckpointHook to delete outside its folders, or of a later time.

    The hook deletes the best checkpoint, a file or a whole folder, when there is a better one, and the older ones of
    ``max_keep_ckpts``. Their names come from the checkpoint that the run resumes from. A best checkpoint that is
    dropped is named in a warning.

    Args:
        runner: The runner that resumes.
        checkpoint: What it loaded; changed in place.
    """
    hub = checkpoint.get('message_hub')
    info = hub.get('runtime_info') if isinstance(hub, dict) else None
    if not isinstance(info, dict):
        return
    savers = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
    out_dirs = [saver.out_dir for saver in savers if saver.out_dir]
    folders = {Path(runner.work_dir).resolve(), *(Path(out, Path(runner.work_dir).name).resolve() for out in out_dirs)}
    other = {
        key: value
        for key, value in info.items()
        if str(key).startswith('best_ckpt') and value is not None and not _is_best_in(value, folders)
    }
    for key, path in other.items():
        del info[key]
        print_log(
            f'the best checkpoint that the file names, {printable(repr(path))}, is not in the folder of this '
            'run: it is left alone',
            logger='current',
            level=logging.WARNING,
        )
    if 'keep_ckpt_ids' in info:
        meta = checkpoint.get('meta') or {}
        counts = [meta.get('epoch' if saver.by_epoch else 'iter') for saver in savers]
        latest = min((count for count in counts if isinstance(count, int)), default=0)
        kept = info['keep_ckpt_ids'] if isinstance(info['keep_ckpt_ids'], (list, tuple)) else []
        info['keep_ckpt_ids'] = [number for number in kept if isinstance(number, int) and number <= latest]


def _is_best_in(path: Any, folders: set[Path]) -> bool:
    return isinstance(path, str) and Path(path).name.startswith('best_') and Path(path).resolve().parent in folders


class OwnFilesOnly(Hook):
    """Does so for a run that has no EMAHook of ours."""

    priority = 'VERY_HIGH'

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Looks at a checkpoint that the run resumes from.

        Args:
            runner (Runner): The runner that loads.
            checkpoint (dict): What it loaded; changed in place.
        """
        if is_resumed(runner):
            forget_other_files(runner, checkpoint)
