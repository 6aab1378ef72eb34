"""Validating averages of many horizons, and telling whether the best is better than the run's EMA."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Optional

from mmyolo_ema.checkpoint import has_ema, raw_weights, read, verify
from mmyolo_ema.checkpoint.weights import averaged_weights
from mmyolo_ema.files import replace
from mmyolo_ema.posthoc.bootstrap import Comparison, Matches, compare, mean_average_precision
from mmyolo_ema.posthoc.build import build
from mmyolo_ema.posthoc.evaluation import Evaluation
from mmyolo_ema.posthoc.reconstruction import USUAL_ERROR, Reconstruction, reconstruct_named, stored_average
from mmyolo_ema.posthoc.snapshots import StoredRun
from mmyolo_ema.posthoc.targets import horizons

__all__ = ['RAW', 'RUN_EMA', 'Candidate', 'HorizonCurve', 'Sweep']

#: The run's EMA and its raw weights in the file of what was measured, and in the names of the files beside it.
RUN_EMA, RAW = 'shipped', 'raw'

# What is between the horizons of a grid by twos, around the best.
_FINER = (2**0.5, 2**0.25)


class Candidate(NamedTuple):
    """Weights that were validated.

    Attributes:
        name: The average that was asked for; :data:`RUN_EMA` or :data:`RAW`.
        horizon: Of the average, in updates; None if it has none.
        reconstruction_error: See :class:`mmyolo_ema.posthoc.Fit`; 0 for what is stored.
        mean_age: In updates.
        metrics: What the evaluator measured.
        score: The metric of interest, as exactly as it is known.
    """

    name: str
    horizon: Optional[float]
    reconstruction_error: float
    mean_age: float
    metrics: dict[str, float]
    score: float


class HorizonCurve(NamedTuple):
    """What averages of one run reach, by their mean age in updates.

    ``points`` holds (mean age, metric, error of the reconstruction, name), and ``levels`` the metric of weights that
    have no age, such as the raw ones, by their names. ``own`` is the point of the run's own average.
    """

    metric: str
    points: list[tuple[float, float, float, str]]
    own: tuple[float, float]
    levels: dict[str, float]


class Sweep:
    """Validates averages of a run; what was measured is stored after each, and is not measured again.

    Args:
        run: The run.
        evaluation: How weights are validated.
        path: File of what was measured.
        config: What the evaluation depends on, as text; a file of another config, or of another run, is refused.
        metric: The metric of interest. Defaults to None: a mAP of boxes or masks, or the first.
        less_is_better: Whether it is like a loss. Defaults to False.

    Raises:
        ValueError: If the file is of another sweep.
    """

    def __init__(self, run: StoredRun, evaluation: Evaluation, path: Path, config: str, metric: Optional[str] = None,
                 less_is_better: bool = False) -> None:
        self.run, self.path, self.metric = run, path, metric
        self.candidates: dict[str, Candidate] = {}
        #: Averages that are not made well enough, and their reconstruction errors.
        self.dropped: dict[str, float] = {}
        self._evaluation, self._sign = evaluation, -1 if less_is_better else 1
        self._made: dict[str, Reconstruction] = {}
        self._matches: dict[str, Optional[Matches]] = {}
        self._of = dict(files=[[file.path.name, file.updates, file.path.stat().st_mtime_ns] for file in run.files],
                        schedule=str(run.schedule), config=config)
        self._stored = self._read()

    def measure_stored(self) -> None:
        """Validates what the newest file holds: the run's average, and its raw weights."""
        content = read(self.run.files[-1].path, mmap=True)
        verify(self.run.files[-1].path)
        self._measure(RUN_EMA, lambda: averaged_weights(content), stored_average(self.run, RUN_EMA))
        if has_ema(content):
            self._measure(RAW, lambda: raw_weights(content))

    def measure(self, wanted: Sequence[Reconstruction], progress: Callable[[Iterable], Iterable] = iter) -> None:
        """Validates averages, but for those that cannot be made well enough.

        Args:
            wanted: How they are made.
            progress: As for :func:`mmyolo_ema.posthoc.build.build`.
        """
        reconstructions = {reconstruction.target.name: reconstruction for reconstruction in wanted}
        errors = {name: reconstruction.worst.reconstruction_error for name, reconstruction in reconstructions.items()}
        self.dropped.update((name, error) for name, error in errors.items() if error > USUAL_ERROR)
        kept = {name: reconstruction for name, reconstruction in reconstructions.items() if name not in self.dropped}
        missing = {name: {count: fit.coefficients for count, fit in reconstruction.fits.items()}
                   for name, reconstruction in kept.items() if name not in self._stored}
        # All in one go: each file is read once.
        built = build(self.run, missing, progress) if missing else {}
        for name, reconstruction in kept.items():
            self._measure(name, partial(built.pop, name), reconstruction)

    def add_earlier(self) -> None:
        """Adds averages that an earlier sweep validated: who looks again, at fewer, has had all these chances."""
        self.measure(reconstruct_named(self.run, [name for name in self._stored
                                                  if name not in (RAW, *self.candidates)]))

    def refine(self, progress: Callable[[Iterable], Iterable] = iter) -> None:
        """Validates averages between those around the best, if that has a horizon."""
        for factor in _FINER:
            near = horizons(self.best_reconstruction.target.schedule, (1 / factor, factor))
            self.measure(reconstruct_named(self.run, near), progress)

    @property
    def best(self) -> Candidate:
        """The best average; of equal ones the run's EMA, then that of the smallest reconstruction error."""
        return self._by_merit()[0]

    @property
    def best_reconstruction(self) -> Reconstruction:
        """How the best average is made; the run's EMA is the newest file's."""
        return self._made[self.best.name]

    def compare(self, resamples: int, progress: Callable[[Iterable], Iterable] = iter) -> Optional[Comparison]:
        """Returns whether the best average is better than the run's EMA by more than chance.

        Returns:
            None if that cannot be told, because the metric is not COCO's mAP, or there is no other average.
        """
        others = {candidate.name: self._matches[candidate.name] for candidate in self._by_merit()
                  if candidate.name != RUN_EMA}
        base = self._matches.get(RUN_EMA)
        if base is None or not others or any(matched is None for matched in others.values()):
            return None
        known: Mapping[str, Any] = others
        return compare(known, base, resamples, progress=progress)

    def finish(self, comparison: Optional[Comparison]) -> None:
        """Stores what came of it beside what was measured."""
        self._write(metric=self.metric, best=self.best.name, dropped=self.dropped,
                    candidates=[_as_data(candidate) for candidate in self.candidates.values()],
                    comparison=comparison and dict(comparison._asdict(), is_better=comparison.is_better))

    def curve(self) -> HorizonCurve:
        """Returns what the picture shows."""
        own, raw = self.candidates[RUN_EMA], self.candidates.get(RAW)
        points = [(candidate.mean_age, candidate.score, candidate.reconstruction_error, candidate.name)
                  for candidate in self._by_merit()]
        levels = {} if raw is None else {'raw weights': raw.score}
        return HorizonCurve(str(self.metric), points, (own.mean_age, own.score), levels)

    def _by_merit(self) -> list[Candidate]:
        averages = [candidate for candidate in self.candidates.values() if candidate.name != RAW]
        return sorted(averages, reverse=True, key=lambda candidate: (
            self._sign * candidate.score, candidate.name == RUN_EMA, -candidate.reconstruction_error))

    def _measure(self, name: str, weights: Callable[[], dict[str, Any]], made: Optional[Reconstruction] = None) -> None:
        """Validates weights, unless they were; raw ones if ``made`` is None."""
        stored = self._stored.get(name)
        if stored is None:
            stored = self._evaluation.measure(weights(), _file_name(name))
            self._stored[name] = stored
            self._write()
        if name == RUN_EMA and not stored:
            raise ValueError("the evaluator measured nothing for the run's EMA: it detects nothing, or the "
                             'evaluator only writes results (format_only)')
        if self.metric is None:
            usual = [key for key in stored if key.endswith(('bbox_mAP', 'segm_mAP'))]
            self.metric = next(iter([*usual, *stored]), '')
        if stored and self.metric not in stored:
            raise ValueError(f'the evaluator measures no {self.metric}, but {", ".join(stored)}')
        # A detector that detects nothing gets no metrics.
        measured = stored.get(self.metric, 0.0)
        matched = self._evaluation.matches(_file_name(name), self.metric, measured)
        if matched is not None:
            measured = mean_average_precision(matched)
        self._matches[name] = matched
        if made is None:
            self.candidates[name] = Candidate(name, None, 0.0, 0.0, stored, measured)
            return
        momentum = getattr(made.target.schedule, 'momentum', None)
        self._made[name] = made
        self.candidates[name] = Candidate(
            name, momentum and 1 / momentum, made.worst.reconstruction_error, made.worst.mean_age, stored, measured)

    def _read(self) -> dict[str, dict[str, float]]:
        if not self.path.exists():
            return {}
        try:
            content = json.loads(self.path.read_text())
            measured = {name: {key: float(value) for key, value in metrics.items()}
                        for name, metrics in content['measured'].items()}
            if content['of'] == self._of:
                return measured
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f'{self.path} is not what a sweep writes: move it away') from error
        raise ValueError(f'{self.path} is of another config, or of other checkpoints: move it away')

    def _write(self, **more: Any) -> None:
        content = dict(of=self._of, measured=self._stored, **more)
        replace(self.path, lambda path: path.write_text(json.dumps(content, indent=1)))


def _as_data(candidate: Candidate) -> dict[str, Any]:
    """Returns a candidate as the file has it, where its reconstruction error is under 'error'."""
    return {'error' if key == 'reconstruction_error' else key: value for key, value in candidate._asdict().items()}


def _file_name(name: str) -> str:
    return name.replace(':', '_').replace('%', 'percent').replace(' ', '')
