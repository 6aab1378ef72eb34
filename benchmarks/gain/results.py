"""Differences over seeds, in tables and a picture."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.table import Table
from scipy.stats import t as student

from benchmarks.gain.training import DATA, RATES

#: What is compared with the raw weights, by the names in the results of a training.
_COMPARED = {
    'ours': "mmyolo_ema, mean_age='4%'",
    'mmdet': "MMDetection's class, 0.0002 and 2000",
    'mmengine': "MMEngine's default, 0.0002",
}
_SIGNIFICANT = 0.05
# Standard deviation of a difference of two mAP that MMDetection rounds to 0.1 points: equal ones are not certain.
_ROUNDING = 0.1 / 6**0.5
# Points of mAP at the ticks of the picture, whose axis is logarithmic beyond the middle ones: an average that still
# holds the first weights is far below.
_TICKS = (-50, -20, -10, -5, 0, 5, 10)


class Difference(NamedTuple):
    """A difference in points of mAP over seeds; error and p-value are NaN for a single seed."""

    mean: float
    standard_error: float
    p_value: float

    def __str__(self) -> str:
        if np.isnan(self.standard_error):
            return f'{self.mean:+.1f}, one seed'
        verdict = 'no difference seen' if self.p_value >= _SIGNIFICANT else 'better' if self.mean > 0 else 'worse'
        return f'{self.mean:+.1f} ± {self.standard_error:.1f} {verdict}'


def paired(precision: NDArray[np.float64], reference: NDArray[np.float64]) -> Difference:
    """Compares what two kinds of weights reach in the same trainings.

    Args:
        precision: mAP from 0 to 1, of shape (seeds,).
        reference: That of the other weights.

    Example:
        >>> import numpy as np
        >>> str(paired(np.array([0.52, 0.53, 0.55]), np.array([0.50, 0.51, 0.52])))
        '+2.3 ± 0.3 better'
    """
    differences = 100 * (precision - reference)
    if len(differences) == 1:
        return Difference(float(differences[0]), np.nan, np.nan)
    error = max(differences.std(ddof=1), _ROUNDING) / len(differences) ** 0.5
    p_value = 2 * student.sf(abs(differences.mean()) / error, len(differences) - 1)
    return Difference(float(differences.mean()), float(error), float(p_value))


class Group(NamedTuple):
    """Trainings that differ in their seed; arrays are of shape (seeds, validations)."""

    data: str
    rate: str
    seeds: int
    updates: list[int]
    precision: dict[str, NDArray[np.float64]]
    apart: dict[str, NDArray[np.float64]]

    def gains(self, name: str, over: str = 'raw') -> list[Difference]:
        return [*map(paired, self.precision[name].T, self.precision[over].T)]


def _groups(runs: list[dict[str, Any]]) -> list[Group]:
    groups = []
    for data, rate in ((data, rate) for data in DATA for rate in RATES):
        members = [run for run in runs if (run['data'], run['rate']) == (data, rate)]
        if members:
            precision, apart = (
                {name: np.array([run[what][name] for run in members]) for name in members[0][what]}
                for what in ('mAP', 'apart')
            )
            groups.append(Group(data, rate, len(members), members[0]['updates'], precision, apart))
    return groups


def gain_table(runs: list[dict[str, Any]]) -> Table:
    """Returns the mAP of the raw weights, and what the averages differ by.

    Args:
        runs: The results of trainings, see :func:`benchmarks.gain.training.train`, with their ``data`` and ``rate``.
    """
    table = _table(
        'mAP x 100, and differences to the raw weights: mean ± standard error over seeds, paired',
        'raw',
        *_COMPARED.values(),
    )
    for group in _groups(runs):
        raw = (f'{100 * mean:.1f}' for mean in group.precision['raw'].mean(axis=0))
        _add_rows(table, group, raw, *map(group.gains, _COMPARED))
    return table


def shared_table(runs: list[dict[str, Any]]) -> Table:
    """Returns what it does to average shared tensors once for each name, with a schedule that is the same."""
    table = _table(
        "RTMDet's shared convolutions, averaged three times an update (MMDetection's class) instead of once",
        'weights off by',
        'raw weights off by',
        'mAP x 100',
    )
    for group in _groups(runs):
        apart = ((f'{mean:.2%}' for mean in group.apart[name].mean(axis=0)) for name in ('by_name', 'raw'))
        _add_rows(table, group, *apart, group.gains('by_name', over='ours'))
    return table


def _table(title: str, *columns: str) -> Table:
    return Table('data', 'learning rate', 'seeds', 'updates', *columns, title=title)


def _add_rows(table: Table, group: Group, *columns: Any) -> None:
    for cells in zip(group.updates, *columns):
        table.add_row(group.data, group.rate, str(group.seeds), *map(str, cells))


def draw_gains(runs: list[dict[str, Any]], path: Path) -> None:
    """Draws the differences over a training, a panel for each data set and learning rate.

    Args:
        runs: As for :func:`gain_table`.
        path: File to write; its suffix names the format.
    """
    groups = _groups(runs)
    figure = Figure(figsize=(3 * len(groups) + 0.5, 4.5), layout='constrained')
    axes = figure.subplots(1, len(groups), squeeze=False, sharey=True)[0]
    for axis, group in zip(axes, groups):
        for name, label in _COMPARED.items():
            mean, error, _ = np.array(group.gains(name)).T
            axis.errorbar(group.updates, mean, np.nan_to_num(error), marker='o', capsize=3, label=label)
        axis.set_title(f'{group.data}, {group.rate} learning rate', fontsize='medium')
        axis.set_xlabel('updates')
        axis.set_xticks(group.updates)
        axis.set_yscale('symlog', linthresh=10)
        axis.set_yticks(_TICKS, labels=map(str, _TICKS))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel('mAP x 100, minus that of the raw weights')
    figure.legend(*axes[0].get_legend_handles_labels(), loc='outside lower left')
    figure.savefig(path, dpi=100)
