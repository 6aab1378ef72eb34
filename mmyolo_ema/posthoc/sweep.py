"""Validating averages of many horizons, and telling whether the best is better than the run's EMA."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Optional, Union

from mmyolo_ema.checkpoint import has_ema, raw_weights, read, verify
from mmyolo_ema.checkpoint.weights import averaged_weights
from mmyolo_ema.files import replace
from mmyolo_ema.posthoc.bootstrap import Comparison, Matches, compare
from mmyolo_ema.posthoc.build import build
from mmyolo_ema.posthoc.evaluation import Evaluation
from mmyolo_ema.posthoc.reconstruction import USUAL_ERROR, Reconstruction
from mmyolo_ema.posthoc.run import RAW_SCHEDULE, StoredRun
from mmyolo_ema.posthoc.targets import Target, horizons_around

#: The run's EMA and its raw weights in the file of what was measured, and in the names of the files beside it.
RUN_EMA, RAW = 'shipped', 'raw'

# What is between the horizons of a grid by twos, around the best.
_FINER = (2**0.5, 2**0.25)


@dataclass(frozen=True)
class Candidate:
    """Weights that were validated.

    Attributes:
        name: The average that was asked for; :data:`RUN_EMA` or :data:`RAW`.
        average: How they are made.
        metrics: What the evaluator measured.
        score: The metric of interest, as exactly as it is known.
        matches: Its detections, None if they are not known.
    """

    name: str
    average: Reconstruction
    metrics: dict[str, float]
    score: float
    matches: Optional[Matches]


@dataclass(frozen=True)
class SweepResult:
    """What was validated, and what came of it.

    Attributes:
        metric: The metric of interest.
        candidates: What was validated, by name, in that order.
        best: The best average; of equal ones the run's EMA, then that of the smallest reconstruction error.
        dropped: Averages that are not made well enough, and their reconstruction errors.
        comparison: Whether the best of the other averages is better than the run's EMA by more than chance; None if
            that cannot be told, because the metric is not COCO's mAP, or there is no other average.
    """

    metric: str
    candidates: dict[str, Candidate]
    best: Candidate
    dropped: dict[str, float]
    comparison: Optional[Comparison]

    @property
    def run_ema(self) -> Candidate:
        """The average that the run kept."""
        return self.candidates[RUN_EMA]


def sweep(
    run: StoredRun,
    evaluation: Evaluation,
    horizons: Sequence[Union[str, float]],
    path: Path,
    metric: Optional[str] = None,
    less_is_better: bool = False,
    resamples: int = 1000,
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> SweepResult:
    """Validates averages of a run beside its EMA and its raw weights, and then averages around the best.

    What was measured is stored after each, and is not measured again. Averages that an earlier sweep validated are
    candidates too: who looks again, at fewer, has had all these chances.

    Args:
        run: The run.
        evaluation: How weights are validated.
        horizons: The averages, as :meth:`mmyolo_ema.posthoc.StoredRun.average` takes them.
        path: File of what was measured; that of another run or another config is refused.
        metric: The metric of interest. Defaults to None: a mAP of boxes or masks, or the first.
        less_is_better: Whether it is like a loss. Defaults to False.
        resamples: How often images are drawn anew for the comparison. Defaults to 1000.
        progress: Wraps what is gone through, as tqdm does. Defaults to showing nothing.

    Raises:
        ValueError: If an average is of another form; if the file is of another sweep; if the evaluator does not measure
            the metric.
    """
    averages = [run.average(horizon) for horizon in horizons]
    running = _Running(run, evaluation, path, metric, -1 if less_is_better else 1, progress)
    running.measure_stored()
    running.measure(averages)
    for factor in _FINER:
        around = horizons_around(running.by_merit()[0].average.target.schedule, (1 / factor, factor))
        running.measure([run.average(name) for name in around if name not in running.candidates])
    running.measure([run.average(name) for name in running.measured if name not in (RAW, *running.candidates)])
    return running.finish(resamples)


class _Running:
    """A sweep that goes on."""

    def __init__(
        self,
        run: StoredRun,
        evaluation: Evaluation,
        path: Path,
        metric: Optional[str],
        sign: int,
        progress: Callable[[Iterable[Any]], Iterable[Any]],
    ) -> None:
        self.run, self.evaluation, self.path, self.metric = run, evaluation, path, metric
        self.sign, self.progress = sign, progress
        self.candidates: dict[str, Candidate] = {}
        self.dropped: dict[str, float] = {}
        self._of = dict(
            files=[[file.path.name, file.updates, file.path.stat().st_mtime_ns] for file in run.files],
            schedule=str(run.schedule),
            config=evaluation.config,
        )
        self.measured = self._read()

    def measure_stored(self) -> None:
        """Validates what the newest file holds: the run's average, and its raw weights."""
        content = read(self.run.files[-1].path, mmap=True)
        verify(self.run.files[-1].path)
        self._measure(lambda: averaged_weights(content), self.run.average(Target(RUN_EMA, self.run.schedule)))
        if has_ema(content):
            self._measure(lambda: raw_weights(content), self.run.average(Target(RAW, RAW_SCHEDULE)))

    def measure(self, averages: Sequence[Reconstruction]) -> None:
        """Validates averages, but for those that cannot be made well enough."""
        by_name = {average.target.name: average for average in averages}
        self.dropped.update((name, average.error) for name, average in by_name.items() if average.error > USUAL_ERROR)
        kept = {name: average for name, average in by_name.items() if name not in self.dropped}
        missing = [name for name in kept if name not in self.measured]
        # All in one go: each file is read once.
        built = dict(zip(missing, build([kept[name] for name in missing], self.progress))) if missing else {}
        for name, average in kept.items():
            self._measure(partial(built.pop, name), average)

    def by_merit(self) -> list[Candidate]:
        """Returns the averages, the best first."""
        averages = [candidate for candidate in self.candidates.values() if candidate.name != RAW]
        return sorted(
            averages,
            reverse=True,
            key=lambda candidate: (self.sign * candidate.score, candidate.name == RUN_EMA, -candidate.average.error),
        )

    def finish(self, resamples: int) -> SweepResult:
        """Compares the best with the run's EMA, and stores what came of it beside what was measured."""
        best, base = self.by_merit()[0], self.candidates[RUN_EMA].matches
        others = {candidate.name: candidate.matches for candidate in self.by_merit() if candidate.name != RUN_EMA}
        known = {name: matched for name, matched in others.items() if matched is not None}
        comparison = None
        if base is not None and known and len(known) == len(others):
            comparison = compare(known, base, resamples, progress=self.progress)
        self._write(
            metric=self.metric,
            best=best.name,
            dropped=self.dropped,
            candidates=list(map(_as_data, self.candidates.values())),
            comparison=comparison
            and dict(comparison._asdict(), low=comparison.low, high=comparison.high, is_better=comparison.is_better),
        )
        return SweepResult(str(self.metric), self.candidates, best, self.dropped, comparison)

    def _measure(self, weights: Callable[[], dict[str, Any]], average: Reconstruction) -> None:
        name = average.target.name
        file_name = name.replace(':', '_').replace('%', 'percent').replace(' ', '')
        if name not in self.measured:
            self.measured[name] = self.evaluation.measure(weights(), file_name)
            self._write()
        metrics = self.measured[name]
        if name == RUN_EMA and not metrics:
            raise ValueError(
                "the evaluator measured nothing for the run's EMA: it detects nothing, or the "
                'evaluator only writes results (format_only)'
            )
        if self.metric is None:
            usual = [key for key in metrics if key.endswith(('bbox_mAP', 'segm_mAP'))]
            self.metric = next(iter([*usual, *metrics]), '')
        if metrics and self.metric not in metrics:
            raise ValueError(f'the evaluator measures no {self.metric}, but {", ".join(metrics)}')
        # A detector that detects nothing gets no metrics.
        score, matched = self.evaluation.exact(file_name, self.metric, metrics.get(self.metric, 0.0))
        self.candidates[name] = Candidate(name, average, metrics, score, matched)

    def _read(self) -> dict[str, dict[str, float]]:
        if not self.path.exists():
            return {}
        try:
            content = json.loads(self.path.read_text())
            measured = {
                name: {key: float(value) for key, value in metrics.items()}
                for name, metrics in content['measured'].items()
            }
            if content['of'] == self._of:
                return measured
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f'{self.path} is not what a sweep writes: move it away') from error
        raise ValueError(f'{self.path} is of another config, or of other checkpoints: move it away')

    def _write(self, **more: Any) -> None:
        content = dict(of=self._of, measured=self.measured, **more)
        replace(self.path, lambda path: path.write_text(json.dumps(content, indent=1)))


def _as_data(candidate: Candidate) -> dict[str, Any]:
    momentum = getattr(candidate.average.target.schedule, 'momentum', None)
    return dict(
        name=candidate.name,
        horizon=1 / momentum if momentum and candidate.name != RAW else None,
        error=candidate.average.error,
        mean_age=candidate.average.worst.mean_age,
        metrics=candidate.metrics,
        score=candidate.score,
    )
