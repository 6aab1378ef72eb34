"""The tables and words by which averages of other horizons are described to someone who trains a detector."""

from collections.abc import Sequence

from rich.filesize import decimal
from rich.table import Table

from mmyolo_ema.cli.tables import table_of
from mmyolo_ema.posthoc import Reconstruction, Target
from mmyolo_ema.posthoc.plan import Kept
from mmyolo_ema.posthoc.sweep import SweepResult
from mmyolo_ema.schedules import Ramp, figures, is_raw, rounded


def plan_table(settings: Sequence[Kept], wanted: Sequence[Target], updates: int) -> Table:
    """Returns how well averages can be made of what several settings keep in a run, and what that takes."""
    table = table_of(
        ['average'], [kept.name for kept in settings], 'Reconstruction error of averages of another horizon'
    )
    for average in wanted:
        table.add_row(
            average.name,
            *(percent(kept.reconstruction_error(average, updates)) if kept.snapshots else '' for kept in settings),
        )
    table.add_row('files', *(f'{kept.files:,}' for kept in settings))
    table.add_row('on the disk, about', *(decimal(kept.bytes) for kept in settings))
    return table


def fit_table(averages: Sequence[Reconstruction]) -> Table:
    """Returns how well averages can be made of a run's checkpoints."""
    table = table_of(
        ['average'],
        ['reconstruction error', 'amplification', 'mean age', 'wanted', 'snapshots'],
        'What can be made of them',
    )
    for average in averages:
        fit = average.worst
        table.add_row(
            average.target.name,
            percent(fit.reconstruction_error),
            f'{fit.amplification:.1f}',
            rounded(fit.mean_age),
            rounded(fit.wanted_age),
            str(len(average.coefficients)),
        )
    return table


def remarks_on_ramp(wanted: Sequence[Target], updates: int) -> list[str]:
    """Returns a line on averages that are nearly the raw weights because the run's ramp is not over, if any are."""
    at_end = {target: figures(target.schedule, [updates])[0] for target in wanted if isinstance(target.schedule, Ramp)}
    raw = [
        f'{target.name} ({rounded(at.mean_age)} updates old)'
        for target, at in at_end.items()
        if is_raw(target.schedule, at)
    ]
    if not raw:
        return []
    return [
        f"warning: nearly the raw weights: {', '.join(raw)}. They keep the run's gamma, whose ramp takes most of "
        f'its {updates:,} updates. A horizon of last:LENGTH, the plain mean of the last updates, has no ramp.'
    ]


def coefficients_table(averages: Sequence[Reconstruction]) -> Table:
    """Returns how averages are made of a run's checkpoints."""
    table = table_of(['file', 'weights'], ['updates', *(average.target.name for average in averages)], 'Coefficients')
    for place, (file, kind) in enumerate(averages[0].run.sources):
        table.add_row(
            file.path.name,
            kind,
            f'{file.updates:,}',
            *(f'{average.worst.coefficients[place]:.4g}' for average in averages),
        )
    return table


def sweep_table(result: SweepResult) -> Table:
    """Returns what was validated, from the youngest average to the oldest."""
    table = table_of(['average'], ['reconstruction error', 'mean age', result.metric, "to the run's EMA"], 'Validated')
    for candidate in sorted(result.candidates.values(), key=lambda candidate: candidate.average.worst.mean_age):
        name = "the run's EMA" if candidate is result.run_ema else candidate.name
        table.add_row(
            name + (' (best)' if candidate is result.best else ''),
            percent(candidate.average.error),
            rounded(candidate.average.worst.mean_age),
            f'{candidate.score:.4f}',
            f'{candidate.score - result.run_ema.score:+.4f}',
        )
    return table


def verdict(result: SweepResult) -> list[str]:
    """Returns in words what to do."""
    best, run_ema, compared = result.best, result.run_ema, result.comparison
    if best is run_ema:
        return ["The run's EMA is the best of these: keep it."]
    gain = f"{best.name} reaches {best.score:.4f}, the run's EMA {run_ema.score:.4f}."
    if compared is None:
        return [
            gain,
            "Whether that is more than chance cannot be told; it can for COCO's mAP, if the detections of "
            "all are in posthoc_sweep/. Keep the run's EMA.",
        ]
    known = (
        f'On images drawn anew the difference is {compared.low:+.4f} to {compared.high:+.4f} (95 %); the best of '
        f'so many would look so good by chance with p = {compared.p_value:.2g}.'
    )
    if compared.is_better:
        return [gain, known, 'That is more than chance: best_posthoc.pth is better on images like these.']
    return [gain, known, "That is no more than chance: keep the run's EMA. best_posthoc.pth is there for a look."]


def percent(error: float) -> str:
    """Returns a reconstruction error in words; a hundred times what is wanted needs no digits."""
    return f'{error:.2%}' if error < 10 else f'{error:,.0f} times'
