"""An average that a run did not keep, made of what it kept: how well that goes, and the file."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Optional

import numpy as np

from mmyolo_ema.checkpoint import read
from mmyolo_ema.checkpoint.embedded_program import meta_without_program
from mmyolo_ema.checkpoint.publication import plain, save
from mmyolo_ema.files import replace, write_new
from mmyolo_ema.posthoc.build import build
from mmyolo_ema.posthoc.fit import Fit, fit
from mmyolo_ema.posthoc.snapshots import StoredRun
from mmyolo_ema.posthoc.targets import Target, target

__all__ = ['MOST_ERROR', 'USUAL_ERROR', 'Reconstruction', 'reconstruct', 'reconstruct_named', 'stored_average', 'write']

#: Reconstruction errors beyond which an average is not made, and up to which a detector's metric has been seen to agree
#: with that of the tracked average.
MOST_ERROR, USUAL_ERROR = 0.5, 0.1


class Reconstruction(NamedTuple):
    """A wanted average, and the fit for the tensors with each number of names."""

    target: Target
    fits: dict[int, Fit]

    @property
    def worst(self) -> Fit:
        return max(self.fits.values(), key=lambda fit: fit.reconstruction_error)


def reconstruct(run: StoredRun, target: Target) -> Reconstruction:
    """Finds how an average is made of the snapshots of a run. Reads no tensors."""
    return Reconstruction(
        target, {count: fit(run.snapshots(count), target.schedule, run.updates)
                 for count in run.multiplicities})


def stored_average(run: StoredRun, name: str) -> Reconstruction:
    """Returns the run's EMA as it is in the newest file, under a name."""
    place = max(index for index, (_, kind) in enumerate(run.sources) if kind == 'ema')
    fits = {}
    for count in run.multiplicities:
        newest = run.snapshots(count)[place]
        alone = fit([newest], newest.schedule, newest.updates)
        fits[count] = alone._replace(coefficients=np.eye(len(run.sources))[place], reconstruction_error=0.0)
    return Reconstruction(Target(name, run.schedule), fits)


def reconstruct_named(run: StoredRun, texts: Sequence[str]) -> list[Reconstruction]:
    """Finds how averages are made that :func:`mmyolo_ema.posthoc.targets.target` reads."""
    return [reconstruct(run, target(text, run.schedule, run.updates, run.updates_per_epoch)) for text in texts]


def write(run: StoredRun, wanted: dict[Path, Reconstruction], progress: Callable[[Iterable], Iterable] = iter,
          finish: Optional[Callable[[dict[str, Any]], dict[str, Any]]] = None, remark: Optional[str] = None,
          replaces: bool = False) -> None:
    """Makes averages and writes each to a checkpoint of its own.

    Coefficients and reconstruction error are in its ``meta``.

    Args:
        run: The run.
        wanted: What to write to which file.
        progress: As for :func:`mmyolo_ema.posthoc.build.build`.
        finish: Changes the weights before they are written. Defaults to None: nothing does.
        remark: What else the files shall say about themselves. Defaults to None: nothing.
        replaces: Whether files are replaced that exist. Defaults to False.

    Raises:
        FileExistsError: If there is such a file already, unless it is to be replaced.
        ValueError: If a reconstruction error is above :data:`MOST_ERROR`, before anything is read; or if a file holds
            NaN.
    """
    _check_errors(list(wanted.values()))
    built = build(run, {str(path): {count: fit.coefficients for count, fit in reconstruction.fits.items()}
                        for path, reconstruction in wanted.items()}, progress)
    meta = plain(meta_without_program(read(run.files[-1].path, mmap=True)))
    for path, reconstruction in wanted.items():
        weights = built.pop(str(path))
        content = dict(meta=dict(meta, mmyolo_ema=_origin(run, reconstruction, remark)),
                       state_dict=weights if finish is None else finish(weights))
        (replace if replaces else write_new)(path, partial(save, content))


def _check_errors(wanted: Sequence[Reconstruction]) -> None:
    """Raises if an average cannot be made, and says which can."""
    bad = [reconstruction for reconstruction in wanted if reconstruction.worst.reconstruction_error > MOST_ERROR]
    if bad:
        names = ', '.join(f'{reconstruction.target.name} (its reconstruction error would be '
                          f'{reconstruction.worst.reconstruction_error:.0%})' for reconstruction in bad)
        good = ', '.join(reconstruction.target.name for reconstruction in wanted if reconstruction not in bad)
        raise ValueError(f'cannot be made of these checkpoints: {names}; {MOST_ERROR:.0%} is the most that is written. '
                         'Nothing was written' + (f'; leave it out to write {good}' if good else ''))


def _origin(run: StoredRun, reconstruction: Reconstruction, remark: Optional[str]) -> dict[str, Any]:
    """Returns what a written file says about itself."""
    fit = reconstruction.worst
    names = [f'{file.path.name} {kind}' for file, kind in run.sources]
    return dict(
        weights='ema',
        updates=run.updates,
        posthoc=dict(
            target=reconstruction.target.name,
            schedule=str(reconstruction.target.schedule),
            error=fit.reconstruction_error,
            rounding=fit.amplification,
            mean_age=fit.mean_age,
            remark=remark,
            coefficients={name: float(value) for name, value in zip(names, fit.coefficients) if value}))
