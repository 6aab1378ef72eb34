"""The picture of how an average fared in a run."""

from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

_AVERAGE, _RAW = 'tab:blue', 'tab:orange'


class AverageCurves(NamedTuple):
    """How an average fared in a run.

    ``metrics`` holds (position, metric of the average, metric of the model), the last two None where they were not
    measured; ``state`` holds (position, momentum, drift). ``further`` holds the metrics and the drift of each further
    average, by its name. A position is counted in ``unit``. ``age`` says how old the averages are at the end.
    """

    unit: str
    metric: str
    metrics: list[Any]
    state: list[Any]
    further: dict[str, dict[str, list[Any]]]
    age: str


def draw_average_curves(curves: AverageCurves, path: Path) -> None:
    """Draws the metric of average and model, the momentum, and how far the two are apart.

    Args:
        curves: What was recorded. What is missing is left out.
        path: File to write; its suffix names the format.
    """
    panels = bool(curves.metrics) + 2 * bool(curves.state)
    figure = Figure(figsize=(5 * max(panels, 1), 3.8), layout='constrained')
    figure.suptitle(curves.age, fontsize='medium')
    axes = iter(figure.subplots(1, max(panels, 1), squeeze=False)[0])
    if curves.metrics:
        axis = next(axes)
        for index, name, colour in ((1, 'average', _AVERAGE), (2, 'raw', _RAW)):
            points = [(point[0], point[index]) for point in curves.metrics if point[index] is not None]
            if points:
                axis.plot(*zip(*points), 'o-', color=colour, label=name)
        _plot_further(axis, curves, 'metrics', 'o-')
        axis.set_ylabel(curves.metric)
        axis.legend()
    if curves.state:
        positions, momentum, drift = zip(*curves.state)
        for values, name in ((momentum, 'momentum'), (drift, 'drift: distance / norm of the model')):
            axis = next(axes)
            axis.plot(positions, values, color=_AVERAGE, label='average')
            if values is drift and curves.further:
                _plot_further(axis, curves, 'drift', '-')
                axis.legend()
            if max(values) > 0:
                axis.set_yscale('log')
            axis.set_ylabel(name)
    for axis in figure.axes:
        axis.set_xlabel(curves.unit)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def _plot_further(axis: Axes, curves: AverageCurves, kind: str, style: str) -> None:
    for number, (name, recorded) in enumerate(curves.further.items(), start=2):
        points = [point for point in recorded[kind] if point[1] is not None]
        if points:
            axis.plot(*zip(*points), style, color=f'C{number}', label=name)
