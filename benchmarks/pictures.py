"""The pictures of what a step costs."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from benchmarks.sharing import SharingCost

_OURS, _OTHERS = 'tab:blue', 'lightgray'


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
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, panel in zip(axes, panels):
        lower, median, upper = np.array(list(panel.times.values())).T
        colours = [_OURS] + [_OTHERS] * (len(panel.times) - 1)
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


def draw_sharing(costs: list[SharingCost], path: Path) -> None:
    """Draws memory and time of a step by the number of processes, relative to a whole average, and one over it.

    Args:
        costs: What was measured, of one or several detectors.
        path: File to write; its suffix names the format.
    """
    figure = Figure(figsize=(10, 3.8), layout='constrained')
    law = np.geomspace(1, 16)
    for axis, label in zip(figure.subplots(1, 2), ('memory', 'step')):
        for detector in dict.fromkeys(cost.detector for cost in costs):
            own = [cost for cost in costs if cost.detector == detector]
            shares = [
                cost.shared_memory / cost.whole_memory if label == 'memory' else cost.shared.median / cost.whole.median
                for cost in own
            ]
            axis.loglog([cost.processes for cost in own], shares, 'o', label=detector)
        axis.loglog(law, 1 / law, 'k--', label='1 / processes')
        axis.set_xlabel('processes')
        axis.set_ylabel(f"{label}, as a part of a whole average's")
        axis.set_xticks([1, 2, 3, 4, 8, 16], labels=['1', '2', '3', '4', '8', '16'])
        axis.set_yticks([1, 0.5, 0.25, 0.1], labels=['1', '0.5', '0.25', '0.1'])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend()
    figure.savefig(path, dpi=100)
