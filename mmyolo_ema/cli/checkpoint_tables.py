"""The lines and tables that describe a checkpoint."""

from pathlib import Path
from typing import Optional

from rich.table import Table

from mmyolo_ema.checkpoint.comparison import Comparison
from mmyolo_ema.checkpoint.difference import GroupDifference
from mmyolo_ema.checkpoint.inspection import Inspection, StoredAverage
from mmyolo_ema.checkpoint.mismatches import listed
from mmyolo_ema.cli.tables import table_of
from mmyolo_ema.ema_config import averages_by_name, ema_type_of

_WORDS = dict(ema='averaged ', raw='raw ', only='')
_KINDS = dict(ema='averaged (ema)', raw='raw', only='the only ones')


def inspection_lines(inspection: Inspection) -> list[str]:
    """Returns what a file is: where in a run it was written, its average, its size."""
    written = [
        f'epoch {inspection.epoch}' if inspection.epoch is not None else '',
        f'iteration {inspection.iteration:,}' if inspection.iteration is not None else '',
        f'MMEngine {inspection.written_by}' if inspection.written_by else '',
        'with the state of the optimizer' if inspection.has_optimizer else 'no optimizer: a run cannot go on from it',
    ]
    parts = ', '.join(f'{part} {megabytes(size)}' for part, size in inspection.parts.items())
    return [
        f'{inspection.file}: ' + ', '.join(filter(None, written)),
        f'{megabytes(inspection.size)}: {parts}',
        _average(inspection.average),
    ]


def _average(average: Optional[StoredAverage]) -> str:
    if average is None:
        return 'no average beside these weights'
    updates = 'an unknown number of' if average.updates is None else f'{average.updates:,}'
    age = '' if average.mean_age is None else f', {average.mean_age:,.1f} updates old on average'
    if average.made is not None:
        remark = f'; {average.made["remark"]}' if average.made.get('remark') else ''
        return (
            f'average {average.made.get("target")}, made of the checkpoints of {updates} updates with a '
            f'reconstruction error of {percent(average.made.get("error", 0))}{age}{remark}'
        )
    options = ', '.join(f'{name}={value}' for name, value in average.hook.items() if name not in ('type', 'priority'))
    by = f'{average.hook["type"]}({options})' if average.hook else 'a hook that the file does not name'
    schedule = ''
    if ', then ' in (average.schedule or ''):
        schedule = f'. Its schedule changed: {average.schedule}'
    elif average.schedule and average.hook.get('mean_age') is not None:  # otherwise the options say it
        schedule = f'. Its schedule: {average.schedule}'
    return f'average of {updates} updates{age}, by {by}{schedule}'


def weights_table(inspection: Inspection) -> Table:
    """Returns a row for each set of weights."""
    table = table_of(['weights', 'in the file'], ['updates', 'mean age', 'names', 'elements', 'size'])
    table.add_column('dtypes')
    table.add_column('tensors with NaN or infinity')
    for weights in inspection.weights:
        table.add_row(
            _KINDS.get(weights.kind, weights.kind),
            weights.key,
            _number(weights.updates, ','),
            _number(weights.mean_age, ',.1f'),
            str(weights.tensors),
            f'{weights.numbers:,}',
            megabytes(weights.size),
            ', '.join(weights.dtypes),
            listed('', weights.nonfinite) or 'none',
        )
    return table


def difference_table(title: str, groups: list[GroupDifference]) -> Table:
    """Returns a row for each part of a model."""
    table = table_of(['part'], ['tensors', 'of them differ', 'elements', 'L2 distance / norm'], title)
    for group in groups:
        table.add_row(
            group.group, str(group.tensors), str(group.differing), f'{group.numbers:,}', percent(group.relative)
        )
    return table


def problems(inspection: Inspection) -> list[str]:
    """Returns what a user of the file should know, the worst first."""
    lines = []
    if inspection.average and inspection.average.hooks > 1:
        lines.append(
            f'the config in the file has {inspection.average.hooks} EMAHooks: what is '
            'stored as the raw weights may be the average of another hook. Do not go on with this run'
        )
    for weights in inspection.weights:
        lines += broken(inspection, weights.kind)
    if inspection.unmatched:
        lines.append('not all sets hold, or in another shape' + listed(': ', inspection.unmatched))
    if (
        inspection.average
        and not inspection.stale
        and any(group.differing and group.group.endswith('counts of batches') for group in inspection.differences)
    ):
        lines.append(
            "BatchNorm's num_batches_tracked stands still in the average, as in MMDetection's and MMEngine's "
            'classes with update_buffers=True. Nothing reads it, unless the momentum is None'
        )
    together = [*inspection.shared, *inspection.repeated]
    if together and inspection.average and averages_by_name(inspection.average.hook):
        lines.append(
            'tensors under several names were averaged once for each of them in each update, so that the '
            f'momentum acted as 1 - (1 - momentum) ** {max(map(len, together))} on them, by '
            f'{ema_type_of(inspection.average.hook)} with update_buffers=True'
        )
    for names in inspection.shared:
        lines.append(f'one tensor under {len(names)} names' + listed(': ', names))
    for names in inspection.repeated:
        lines.append(f'the same content stored under {len(names)} names' + listed(': ', names))
    return lines


def broken(inspection: Inspection, kind: str) -> list[str]:
    """Returns what is wrong with one set of weights itself."""
    lines = [
        f'NaN or infinity in the {_WORDS.get(kind, f"{kind} ")}weights' + listed(': ', weights.nonfinite)
        for weights in inspection.weights
        if weights.kind == kind and weights.nonfinite
    ]
    if inspection.stale and kind == 'ema':
        # As tools/posthoc_ema.py takes it; a placeholder if it is not known.
        horizon = _number(inspection.average.horizon if inspection.average else None, '.12g') or 'H'
        unsure = (
            ''
            if inspection.average and inspection.average.hook
            else (" (or it was averaged by MMDetection's class with update_buffers=True: the file does not say)")
        )
        lines.append(
            f'stale statistics in the average, {len(inspection.stale)} BatchNorm layers'
            + listed(': ', inspection.stale)
            + '. They were copied once and then never again'
            + unsure
            + '. Test the raw weights, or estimate the statistics anew: python tools/posthoc_ema.py build '
            f'{Path(inspection.file).parent} --horizon {horizon} -o repaired.pth --config CONFIG '
            '--bn-batches 100'
        )
    return lines


def comparison_lines(comparison: Comparison) -> list[str]:
    """Returns in what two files differ, besides the distances of their tensors."""
    lists = (
        ('only in the first', comparison.only_in_one),
        ('only in the second', comparison.only_in_other),
        ('of another shape', comparison.other_shape),
        ('of another dtype', comparison.other_dtype),
        ('of another value', comparison.other_value),
    )
    lines = [f'{len(names)} {what}' + listed(': ', names) for what, names in lists if names]
    return lines + [
        f'{tensor.name}: {percent(tensor.relative)}, {tensor.differing:,} of {tensor.numbers:,} elements differ'
        for tensor in comparison.farthest
    ]


def apart(relative: Optional[float]) -> str:
    """Returns in words how far two sets of weights are apart."""
    return 'at no finite distance' if relative is None else f'{percent(relative)} apart'


def percent(relative: Optional[float]) -> str:
    """Returns a relative distance as it is read best."""
    if relative is None:
        return 'not finite'
    return f'{100 * relative:.3g} %'


def megabytes(size: int) -> str:
    """Returns a number of bytes in megabytes (10**6)."""
    return f'{size / 1e6:,.1f} MB'


def _number(number: Optional[float], form: str) -> str:
    return '' if number is None else format(number, form)
