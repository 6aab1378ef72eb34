"""An average that a run did not keep, made of what it kept: how well that goes, and the file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional, Union

from mmengine.config import Config

from mmyolo_ema.checkpoint import read
from mmyolo_ema.checkpoint.embedded_program import meta_without_program
from mmyolo_ema.checkpoint.publication import plain, save
from mmyolo_ema.files import replace, write_new
from mmyolo_ema.posthoc.batch_norm import reestimate
from mmyolo_ema.posthoc.build import build
from mmyolo_ema.posthoc.fit import Fit
from mmyolo_ema.posthoc.targets import Target

if TYPE_CHECKING:
    from mmyolo_ema.posthoc.run import StoredRun

#: Reconstruction errors beyond which an average is not made, and up to which a detector's metric has been seen to agree
#: with that of the tracked average.
MOST_ERROR, USUAL_ERROR = 0.5, 0.1


@dataclass(frozen=True)
class Reconstruction:
    """Another average of a run, made of what is stored.

    Attributes:
        run: The run.
        target: The average that is wanted.
        fits: The coefficients of ``run.sources``, for the tensors with each number of names.
    """

    run: StoredRun = field(repr=False)
    target: Target
    fits: dict[int, Fit]

    @property
    def worst(self) -> Fit:
        """The fit of the tensors whose reconstruction error is largest."""
        return max(self.fits.values(), key=lambda fit: fit.reconstruction_error)

    @property
    def error(self) -> float:
        """The reconstruction error: see :class:`mmyolo_ema.posthoc.Fit`."""
        return self.worst.reconstruction_error

    @property
    def coefficients(self) -> dict[str, float]:
        """How much there is of each file and kind of weights, of what the average is made of."""
        return {
            f'{file.path.name} {kind}': float(value)
            for (file, kind), value in zip(self.run.sources, self.worst.coefficients)
            if value
        }

    def write(self, path: Union[str, Path], **options: Any) -> None:
        """Makes the average and writes it to a checkpoint; options, and several in one pass: :func:`write`."""
        write({path: self}, **options)


def write(
    averages: Mapping[Union[str, Path], Reconstruction],
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
    cfg: Optional[Config] = None,
    bn_batches: int = 0,
    replaces: bool = False,
) -> None:
    """Makes averages of a run, reading each of its files once, and writes each to a checkpoint of its own.

    Coefficients and reconstruction error are in its ``meta``.

    Args:
        averages: What to write to which file.
        progress: Wraps what is gone through, as tqdm does. Defaults to showing nothing.
        cfg: Config of the training, to estimate the statistics of BatchNorm anew: see
            :func:`mmyolo_ema.posthoc.batch_norm.reestimate`. Defaults to None: they are averaged too.
        bn_batches: On how many training batches, with ``cfg``.
        replaces: Whether files are replaced that exist. Defaults to False.

    Raises:
        FileExistsError: If there is such a file already, unless it is to be replaced.
        ValueError: If a reconstruction error is above :data:`MOST_ERROR`, before anything is read; if the averages are
            of several runs; if ``bn_batches`` comes without ``cfg``; or if a file holds NaN.
    """
    if bn_batches and cfg is None:
        raise ValueError(f'bn_batches={bn_batches} needs the config of the training: pass cfg')
    bad = {average.target.name: average.error for average in averages.values() if average.error > MOST_ERROR}
    if bad:
        names = ', '.join(f'{name} (its reconstruction error would be {error:.0%})' for name, error in bad.items())
        good = ', '.join(average.target.name for average in averages.values() if average.target.name not in bad)
        raise ValueError(
            f'cannot be made of these checkpoints: {names}; {MOST_ERROR:.0%} is the most that is written. '
            'Nothing was written' + (f'; leave it out to write {good}' if good else '')
        )
    built = build(list(averages.values()), progress)
    for path, average in averages.items():
        weights = built.pop(0)
        if cfg is not None:
            weights = reestimate(weights, cfg, bn_batches, progress)
        meta = plain(meta_without_program(read(average.run.files[-1].path, mmap=True)))
        meta['mmyolo_ema'] = dict(
            weights='ema',
            updates=average.run.updates,
            posthoc=dict(
                target=average.target.name,
                schedule=str(average.target.schedule),
                error=average.error,
                rounding=average.worst.amplification,
                mean_age=average.worst.mean_age,
                remark=f'BatchNorm estimated anew on {bn_batches} training batches' if bn_batches else None,
                coefficients=average.coefficients,
            ),
        )
        (replace if replaces else write_new)(Path(path), partial(save, dict(meta=meta, state_dict=weights)))
