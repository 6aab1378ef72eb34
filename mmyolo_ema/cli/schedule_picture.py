"""The picture of schedules: momentum and weights over a run."""

from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

__all__ = ['ScheduleCurves', 'draw_schedules']


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
    for curve in curves:
        momentum.plot(curve.updates, curve.momentum, label=curve.name)
        weight.plot(curve.updates, curve.weight, label=curve.name)
    momentum.set_yscale('log')
    momentum.set_ylabel('momentum')
    # Settings differ by orders of magnitude, and an update without any weight has no logarithm.
    weight.set_yscale('log')
    highest = max(max(curve.weight) for curve in curves)
    weight.set_ylim(highest * 1e-6, highest * 2)
    weight.set_ylabel('weight in the final average')
    for axis in figure.axes:
        axis.set_xlabel('update')
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    figure.legend(*momentum.get_legend_handles_labels(), loc='outside lower center', ncols=1)
    figure.savefig(path, dpi=100)
