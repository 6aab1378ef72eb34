"""Every picture that the tools draw."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

__all__ = [
    'AverageCurves', 'Detections', 'Growth', 'HorizonCurve', 'ScheduleCurves', 'StepTimes', 'draw_average_curves',
    'draw_detections', 'draw_growth', 'draw_horizons', 'draw_schedules', 'draw_step_times'
]

TRUE_COLOUR, PREDICTED_COLOUR = 'limegreen', 'orangered'
OUR_COLOUR, OTHER_COLOUR, RAW_COLOUR = 'tab:blue', 'lightgray', 'tab:orange'


class Detections(NamedTuple):
    """An image with its boxes, as arrays of (x1, y1, x2, y2) in pixels: shapes (n, 4) and (m, 4)."""

    image: np.ndarray
    true: np.ndarray
    predicted: np.ndarray


def draw_detections(detections: list[Detections], title: str, path: Path) -> None:
    """Draws predicted boxes over the true ones, each image in a panel of its own.

    Args:
        detections: Images with their boxes.
        title: What the picture shows, its first line.
        path: File to write; its suffix names the format.
    """
    columns = min(4, len(detections))
    rows = -(-len(detections) // columns)
    figure = Figure(figsize=(3 * columns, 3 * rows + 0.8), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, shown in zip(axes, detections):
        axis.imshow(shown.image, cmap='gray')
        _draw_boxes(axis, shown.true, TRUE_COLOUR, linewidth=2.5)
        _draw_boxes(axis, shown.predicted, PREDICTED_COLOUR, linewidth=1.2)
    figure.suptitle(title)
    figure.legend(
        handles=[Line2D([], [], color=TRUE_COLOUR, lw=2.5), Line2D([], [], color=PREDICTED_COLOUR, lw=1.2)],
        labels=['true', 'predicted'],
        loc='outside lower center',
        ncols=2)
    figure.savefig(path, dpi=120)


def _draw_boxes(axis: Axes, boxes: np.ndarray, colour: str, linewidth: float) -> None:
    for left, top, right, bottom in boxes:
        axis.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=linewidth))


class StepTimes(NamedTuple):
    """What a step of several classes takes on one detector, in milliseconds.

    ``times`` holds the lower quartile, the median and the upper quartile by name; the first is drawn as ours.
    """

    title: str
    times: dict[str, tuple[float, float, float]]
    limit: float


def draw_step_times(panels: list[StepTimes], path: Path) -> None:
    """Draws a bar for each class, a panel for each detector, and a line where the limit is.

    Args:
        panels: What was measured.
        path: File to write; its suffix names the format.
    """
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 2.6 * rows + 0.4), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes[len(panels):]:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels):
        lower, median, upper = np.array(list(panel.times.values())).T
        colours = [OUR_COLOUR] + [OTHER_COLOUR] * (len(panel.times) - 1)
        axis.barh(list(panel.times), median, color=colours, xerr=(median - lower, upper - median))
        axis.axvline(panel.limit, color='black', linestyle='--', label='limit')
        axis.invert_yaxis()
        axis.set_title(panel.title, fontsize='medium')
        axis.set_xlabel('ms a step (median, quartiles)')
    axes[0].legend()
    figure.savefig(path, dpi=100)


class Growth(NamedTuple):
    """What a step of several classes takes, in milliseconds, as the model grows; the first class is drawn as ours."""

    label: str
    sizes: list[int]
    times: dict[str, list[float]]


def draw_growth(panels: list[Growth], path: Path) -> None:
    """Draws the time of a step against the size of the model, on logarithmic axes.

    Args:
        panels: What was measured; each is drawn in a panel of its own.
        path: File to write; its suffix names the format.
    """
    figure = Figure(figsize=(5 * len(panels), 3.8), layout='constrained')
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
        for (name, times), style in zip(panel.times.items(), ('o-', 's-', 'k--')):
            axis.loglog(panel.sizes, times, style, label=name)
        axis.set_xlabel(panel.label)
        axis.set_ylabel('ms a step (median)')
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=100)


class AverageCurves(NamedTuple):
    """How an average fared in a run.

    ``metrics`` holds (position, metric of the average, metric of the model), the last two None where they were not
    measured; ``state`` holds (position, momentum, drift). A position is counted in ``unit``.
    """

    unit: str
    metric: str
    metrics: list
    state: list


def draw_average_curves(curves: AverageCurves, path: Path) -> None:
    """Draws the metric of average and model, the momentum, and how far the two are apart.

    Args:
        curves: What was recorded. What is missing is left out.
        path: File to write; its suffix names the format.
    """
    panels = bool(curves.metrics) + 2 * bool(curves.state)
    figure = Figure(figsize=(5 * max(panels, 1), 3.8), layout='constrained')
    axes = iter(figure.subplots(1, max(panels, 1), squeeze=False)[0])
    if curves.metrics:
        axis = next(axes)
        for index, name, colour in ((1, 'average', OUR_COLOUR), (2, 'raw', RAW_COLOUR)):
            points = [(point[0], point[index]) for point in curves.metrics if point[index] is not None]
            if points:
                axis.plot(*zip(*points), 'o-', color=colour, label=name)
        axis.set_ylabel(curves.metric)
        axis.legend()
    if curves.state:
        positions, momentum, drift = zip(*curves.state)
        for values, name in ((momentum, 'momentum'), (drift, 'drift: distance / norm of the model')):
            axis = next(axes)
            axis.plot(positions, values, color=OUR_COLOUR)
            if max(values) > 0:
                axis.set_yscale('log')
            axis.set_ylabel(name)
    for axis in figure.axes:
        axis.set_xlabel(curves.unit)
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


class ScheduleCurves(NamedTuple):
    """The momentum over a run and the weight that each update has in the average at its end, for one setting."""

    name: str
    updates: list[float]
    momentum: list[float]
    weight: list[float]


def draw_schedules(curves: list[ScheduleCurves], path: Path) -> None:
    """Draws the momentum over a run, and the weight of each past update in the average at its end.

    Args:
        curves: A setting each; they are drawn in the same two panels.
        path: File to write; its suffix names the format.
    """
    figure = Figure(figsize=(11, 4.2), layout='constrained')
    momentum, weight = figure.subplots(1, 2)
    for one in curves:
        momentum.plot(one.updates, one.momentum, label=one.name)
        weight.plot(one.updates, one.weight, label=one.name)
    momentum.set_yscale('log')
    momentum.set_ylabel('momentum')
    # Settings differ by orders of magnitude, and an update without any weight has no logarithm.
    weight.set_yscale('log')
    highest = max(max(one.weight) for one in curves)
    weight.set_ylim(highest * 1e-6, highest * 2)
    weight.set_ylabel('weight in the final average')
    for axis in figure.axes:
        axis.set_xlabel('update')
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    figure.legend(*momentum.get_legend_handles_labels(), loc='outside lower center', ncols=1)
    figure.savefig(path, dpi=100)


class HorizonCurve(NamedTuple):
    """What averages of one run reach, by their mean age in updates.

    ``points`` holds (mean age, metric, error of the reconstruction, name), and ``levels`` the metric of weights that
    have no age, such as the raw ones, by their names. ``own`` is the point of the run's own average.
    """

    metric: str
    points: list[tuple[float, float, float, str]]
    own: tuple[float, float]
    levels: dict[str, float]


def draw_horizons(curve: HorizonCurve, path: Path) -> None:
    """Draws a metric and the error of the reconstruction against the mean age of the average.

    Args:
        curve: What was measured.
        path: File to write; its suffix names the format.
    """
    figure = Figure(figsize=(7, 5.4), layout='constrained')
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    ages, metrics, errors, names = zip(*sorted(curve.points))
    above.plot(ages, metrics, 'o-', color=OUR_COLOUR, label='average')
    for age, metric, name in zip(ages, metrics, names):
        if (age, metric) != curve.own:
            above.annotate(
                name, (age, metric), textcoords='offset points', xytext=(1, 5), rotation=45, fontsize='small')
    above.plot(*curve.own, 's', color='black', label="the run's own average", zorder=3)
    for name, level in curve.levels.items():
        above.axhline(level, color=RAW_COLOUR, linestyle='--', label=name)
    above.set_ylabel(curve.metric)
    above.margins(y=0.2)
    above.legend()
    below.plot(ages, [100 * error for error in errors], 'o-', color=OTHER_COLOUR)
    below.set_ylabel('error of the weights, %')
    below.set_ylim(bottom=0)
    below.set_xscale('log')
    below.set_xlabel('mean age of the averaged weights, updates')
    for axis in (above, below):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
