"""The tables and words that describe a schedule to someone who trains a detector."""

from typing import NamedTuple, Optional

from rich.table import Table

from mmyolo_ema.cli.tables import table_of
from mmyolo_ema.schedules import RECIPES, USUAL_AGES, Figures, Schedule, advice, figures, is_raw, rounded

# Where in the run the average is looked at.
_SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
# The columns that say how old the average is.
_SHORT = ('updates', 'mean age', 'share')
# Of fewer updates than this the average is nearly the newest, however short the run.
_FEW = 10


class Setting(NamedTuple):
    """A schedule, and what it is called."""

    name: str
    schedule: Schedule

    @property
    def label(self) -> str:
        options = ', '.join(
            f'{name}={f"{value:g}" if isinstance(value, (int, float)) else value}'
            for name, value in vars(self.schedule).items()
            if not (name == 'interval' and value == 1)
        )
        return f'{self.name}: {type(self.schedule).__name__.lower()} {options}'.strip()


class Report(NamedTuple):
    """What a setting makes of a run: the figures at its end, a table over the run, and what they mean in words.

    The answer is about the end of the run, and what to do if it does not suit; ``before`` is how it came there.
    """

    setting: Setting
    at_end: Figures
    table: Table
    answer: list[str]
    before: list[str]


def report(
    setting: Setting, updates: int, updates_per_epoch: Optional[float] = None, all_columns: bool = False
) -> Report:
    """Says what an average is in the course of a run of at least 1 update; ``all_columns`` has more than its age.

    Example:
        >>> from mmyolo_ema.schedules import Ramp
        >>> print(report(Setting('default', Ramp()), updates=2_001).before[0])
        after 200 updates the average holds about 1 of them: practically the raw weights
    """
    points = sorted({max(round(share * updates), 1) for share in _SHARES})
    rows = figures(setting.schedule, points, start=max(round(updates / 100), 1))
    cells = [_cells(row, updates_per_epoch) for row in rows]
    names = [name for name in cells[0] if all_columns or name in _SHORT]
    table = table_of([], names, setting.label)
    for texts in cells:
        table.add_row(*(texts[name] for name in names))
    # What stays the same from point to point is said once, where it begins, and at the end.
    words, kind = [], ''
    for row in rows:
        if row.updates >= round(0.1 * updates):
            before, kind = kind, _kind(setting.schedule, row)
            if row is rows[-1] or kind != before:
                words.append(
                    f'after {row.updates:,} updates{", the end," if row is rows[-1] else ""} the average '
                    f'holds about {max(round(row.effective_sample_size), 1):,} of them: {kind}'
                )
    answer = [words.pop(), *filter(None, [advice(setting.schedule, updates)])]
    return Report(setting, rows[-1], table, answer, words)


def _cells(row: Figures, updates_per_epoch: Optional[float]) -> dict[str, str]:
    return {
        'updates': f'{row.updates:,}',
        'epoch': _epochs(row.updates, updates_per_epoch),
        'momentum': f'{row.momentum:.3g}',
        'horizon': rounded(row.horizon),
        'mean age': rounded(row.mean_age),
        'in epochs': _epochs(row.mean_age, updates_per_epoch),
        'share': f'{row.mean_age / row.updates:.2%}',
        'effective sample size': rounded(row.effective_sample_size),
        'weight of first 1 %': f'{row.start:.1%}',
    }


def _kind(schedule: Schedule, at: Figures) -> str:
    """Returns in words what an average is at a point of a run."""
    share = at.mean_age / at.updates
    if at.start > 0.5 and share > USUAL_AGES[1]:
        return 'mostly the weights that it began with'
    if share > USUAL_AGES[1]:
        return f'much of it stems from early in the run, its mean age is above {USUAL_AGES[1]:.0%} of the run so far'
    if is_raw(schedule, at) or at.effective_sample_size < _FEW:
        return 'practically the raw weights'
    if share < USUAL_AGES[0]:
        return f'a short average, its mean age is below {USUAL_AGES[0]:.0%} of the run so far'
    low, high = USUAL_AGES
    return f'its mean age is between {low:.0%} and {high:.0%} of the run so far, as has been found useful'


def recipes_table(reports: list[Report], updates_per_epoch: Optional[float]) -> Table:
    """Compares what settings have at the end of a run with published recipes."""
    table = table_of(
        ['recipe'],
        ['updates', 'horizon', 'in epochs', 'mean age / run', 'standard deviation of the age / run'],
        'At the end, beside the recipes published for COCO (118,287 images)',
    )
    rows = [(f'this run, {report.setting.name}', report.at_end, updates_per_epoch) for report in reports]
    rows += [(recipe.name, recipe.at_end(), recipe.updates_per_epoch) for recipe in RECIPES]
    for name, at_end, per_epoch in rows:
        table.add_row(
            name,
            f'{at_end.updates:,}',
            rounded(at_end.horizon),
            _epochs(at_end.horizon, per_epoch),
            f'{at_end.mean_age / at_end.updates:.2%}',
            f'{at_end.age_deviation / at_end.updates:.2%}',
        )
    return table


def _epochs(updates: float, updates_per_epoch: Optional[float]) -> str:
    return '-' if updates_per_epoch is None else rounded(updates / updates_per_epoch)
