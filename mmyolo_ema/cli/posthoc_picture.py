"""The picture of a sweep: metric and reconstruction error by the age of the average."""

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mmyolo_ema.posthoc.sweep import RAW, Candidate, SweepResult

# Names of averages that there is room for, side by side.
_MOST_NAMES = 10
_AVERAGE, _ERROR, _RAW = 'tab:blue', 'lightgray', 'tab:orange'


def draw_horizons(result: SweepResult, path: Path) -> None:
    """Draws the metric and the reconstruction error of averages against their mean age."""
    figure = Figure(figsize=(7, 5.4), layout='constrained')
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    run_ema, raw = result.run_ema, result.candidates.get(RAW)
    averages = sorted(
        (candidate for candidate in result.candidates.values() if candidate is not raw),
        key=lambda candidate: (candidate.average.worst.mean_age, candidate.score),
    )
    ages = [candidate.average.worst.mean_age for candidate in averages]
    above.plot(ages, [candidate.score for candidate in averages], 'o-', color=_AVERAGE, label='average')
    if result.comparison is not None:
        intervals = dict(result.comparison.intervals, **{run_ema.name: (0.0, 0.0)})
        ends = [[run_ema.score + intervals[candidate.name][end] for candidate in averages] for end in (0, 1)]
        above.fill_between(ages, *ends, color=_AVERAGE, alpha=0.15, label="95 % of its difference to the run's EMA")
        above.axhline(run_ema.score, color='black', linewidth=0.8)
    for candidate in _apart([result.best, *averages]):
        if candidate is not run_ema:
            above.annotate(
                candidate.name,
                (candidate.average.worst.mean_age, candidate.score),
                xytext=(0, 6),
                textcoords='offset points',
                ha='center',
                fontsize='small',
            )
    above.plot(run_ema.average.worst.mean_age, run_ema.score, 's', color='black', label="the run's EMA", zorder=3)
    if raw is not None:
        above.axhline(raw.score, color=_RAW, linestyle='--', label='raw weights')
    above.set_ylabel(result.metric)
    above.margins(y=0.2)
    above.legend()
    below.plot(ages, [100 * candidate.average.error for candidate in averages], 'o-', color=_ERROR)
    below.set_ylabel('reconstruction error, %')
    below.set_ylim(bottom=0)
    below.set_xscale('log')
    below.set_xlabel('mean age of the averaged weights, updates')
    for axis in (above, below):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def _apart(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Returns those, the first ones first, whose names do not overlap with that of another."""
    ages = [math.log(candidate.average.worst.mean_age or 1) for candidate in candidates]
    room = (max(ages) - min(ages)) / _MOST_NAMES
    named: list[int] = []
    for place, age in enumerate(ages):
        if all(abs(age - ages[other]) > room for other in named):
            named.append(place)
    return [candidates[place] for place in named]
