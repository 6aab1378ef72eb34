"""The tables of a benchmark, and what its numbers depend on."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Optional

import torch
from rich.table import Table

from benchmarks.averages import BARS, AveragesCost
from benchmarks.contenders import OURS
from benchmarks.hook_cost import NO_HOOK, HookCost
from benchmarks.memory import Memory
from benchmarks.scale import ScalePoint
from benchmarks.sharing import SharingCost
from benchmarks.steps import BARE, LIMIT, Cost, StepCosts
from benchmarks.timing import Timing
from benchmarks.training import RunCost, TrainingStepCost
from mmyolo_ema.cli.tables import table_of

_PACKAGES = ('mmyolo_ema', 'torch', 'mmengine', 'onedl-mmengine', 'mmdet', 'onedl-mmdetection', 'timm', 'ema-pytorch')


def environment(device: str) -> dict[str, object]:
    """Returns the hardware and the versions that the numbers were measured with."""
    return dict(
        device=device if device == 'cpu' else torch.cuda.get_device_name(device),
        processor=_processor(),
        threads=torch.get_num_threads(),
        python=platform.python_version(),
        packages={name: version for name in _PACKAGES if (version := _installed(name)) is not None},
    )


def step_table(costs: StepCosts) -> Table:
    """Returns the time of a step by class, beside the least that it could take."""
    on_gpu = costs.costs[OURS].gpu is not None
    table = _table(
        f'{_title(costs)}: a step',
        'class',
        'ms',
        'quartiles',
        *(['host ms', 'GPU ms'] if on_gpu else []),
        *(f'{"GPU " if on_gpu else ""}x {name}' for name in ('limit', 'bare', 'ours')),
    )
    for name, cost in costs.costs.items():
        table.add_row(
            name,
            _ms(cost.step),
            _quartiles(cost.step),
            *(map(_ms, (cost.host, cost.gpu)) if on_gpu else ()),
            *(f'{costs.ratio(name, to):.2f}' for to in (LIMIT, BARE, OURS)),
        )
    return table


def surroundings_table(costs: StepCosts) -> Table:
    """Returns what an average costs besides its steps, by class."""
    table = _table(
        f'{_title(costs)}: besides the steps',
        'class',
        'check ms',
        'swap ms',
        'create ms',
        'save ms',
        'average MiB',
        'step adds',
        'swap adds',
    )
    for name, cost in costs.costs.items():
        if cost.create is not None:
            table.add_row(name, *map(_ms, (cost.check, cost.swap, cost.create, cost.save)), *_memories(cost))
    return table


def averages_table(cost: AveragesCost) -> Table:
    """Returns the time of a step of several averages, and whether it keeps within its bar."""
    table = _table(
        f'{cost.detector}, update_buffers=True, {cost.weights / 1e6:.1f} M weights: a step',
        'averages',
        'ms',
        'quartiles',
        'x bare',
        'bar',
    )
    for name, step in cost.steps.items():
        to, most = BARS.get(name, ('', 0.0))
        ratio = cost.ratio(name, to) if to else 0.0
        bar = f'{ratio:.2f} x {to}, at most {most}: {"met" if ratio <= most else "missed"}' if to else ''
        table.add_row(name, _ms(step), _quartiles(step), f'{cost.ratio(name):.2f}', bar)
    return table


def scale_table(what: str, points: list[ScalePoint]) -> Table:
    """Returns the time of a step by the size of the model: its number of tensors, or of weights."""
    table = _table(
        f'a step, by the number of {what}',
        'tensors',
        'million weights',
        *(f'{name} ms' for name in points[0].steps),
        'ours x limit',
    )
    for point in points:
        table.add_row(
            str(point.tensors),
            f'{point.weights / 1e6:g}',
            *map(_ms, point.steps.values()),
            f'{point.steps[OURS].median / point.steps[LIMIT].median:.2f}',
        )
    return table


def sharing_table(costs: list[SharingCost]) -> Table:
    """Returns what an average costs each of several processes, whole and shared out."""
    table = _table(
        'an average shared out among processes',
        'detector',
        'processes',
        'whole ms',
        'shared ms',
        'x whole',
        'whole MiB',
        'shared MiB',
        'x whole',
        'gather ms',
        "MMEngine's swap ms",
    )
    for cost in costs:
        step, memory = cost.shared.median / cost.whole.median, cost.shared_memory / cost.whole_memory
        table.add_row(
            cost.detector,
            str(cost.processes),
            _ms(cost.whole),
            _ms(cost.shared),
            f'{step:.2f}',
            _mib(cost.whole_memory),
            _mib(cost.shared_memory),
            f'{memory:.2f}',
            _ms(cost.gather),
            _ms(cost.swap),
        )
    return table


def training_step_table(cost: TrainingStepCost) -> Table:
    """Returns what an update adds to a training step."""
    share = cost.update.median / cost.without.median
    table = _table(
        f'a training step: {cost.batch_size} images of {cost.image_size} x {cost.image_size} pixels',
        '',
        'ms',
        'quartiles',
    )
    for name, timing in (
        ('without an average', cost.without),
        ('with it', cost.with_average),
        (f'its update alone: {share:.2%}', cost.update),
    ):
        table.add_row(name, _ms(timing), _quartiles(timing))
    return table


def hook_table(costs: list[HookCost]) -> Table:
    """Returns what hooks add to a training step."""
    table = _table(
        f'a training step, {costs[0].image_size} x {costs[0].image_size} pixels',
        'hook',
        'images',
        'step ms',
        'quartiles',
        'added ms',
        'quartiles',
        'added',
        'host ms',
    )
    for cost in costs:
        for name, step in cost.step.items():
            added = (
                []
                if name == NO_HOOK
                else [
                    _ms(cost.added[name]),
                    _quartiles(cost.added[name]),
                    f'{cost.share(name):.2%}',
                    _ms(cost.host[name]),
                ]
            )
            table.add_row(f'{cost.detector}: {name}', str(cost.batch_size), _ms(step), _quartiles(step), *added)
    return table


def run_table(costs: dict[str, RunCost]) -> Table:
    """Returns what whole training runs took."""
    table = _table('a whole training run', '', 'seconds, median', 'fastest - slowest', 'peak memory MiB, median')
    for name, cost in costs.items():
        memory = sorted(cost.peak_memory)[len(cost.peak_memory) // 2]
        table.add_row(
            name,
            f'{Timing.of(cost.seconds).median:.1f}',
            f'{min(cost.seconds):.1f} - {max(cost.seconds):.1f}',
            f'{memory / 2**20:.0f}',
        )
    return table


def _title(costs: StepCosts) -> str:
    return (
        f'{costs.detector}, update_buffers={costs.update_buffers}, {costs.tensors} tensors, '
        f'{costs.weights / 1e6:.1f} M weights'
    )


def _table(title: str, first: str, *others: str) -> Table:
    return table_of([first], others, title)


def _ms(timing: Optional[Timing]) -> str:
    return '-' if timing is None else _ms_of(timing.median)


def _quartiles(timing: Timing) -> str:
    return f'{_ms_of(timing.lower)} - {_ms_of(timing.upper)}'


def _ms_of(seconds: float) -> str:
    return f'{seconds * 1e3:.2f}'


def _memories(cost: Cost) -> list[str]:
    held = None if cost.average_memory is None else cost.average_memory.held
    return [_mib(held), _mib(_peak(cost.step_memory)), _mib(_peak(cost.swap_memory))]


def _peak(memory: Optional[Memory]) -> Optional[int]:
    return None if memory is None else memory.peak


def _mib(size: Optional[int]) -> str:
    return '-' if size is None else f'{size / 2**20:.2f}'


def _processor() -> str:
    """Returns the name of the processor; the standard library tells no more than its family on Linux."""
    try:
        with open('/proc/cpuinfo') as lines:
            return next(line.split(':')[1].strip() for line in lines if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor()


def _installed(package: str) -> Optional[str]:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
