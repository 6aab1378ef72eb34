"""The picture of a sweep: metric and error by the age of the average."""

from pathlib import Path

from matplotlib.figure import Figure

from mmyolo_ema.posthoc.sweep import HorizonCurve

__all__ = ['draw_horizons']

_AVERAGE, _ERROR, _RAW = 'tab:blue', 'lightgray', 'tab:orange'


def draw_horizons(curve: HorizonCurve, path: Path) -> None:
    """Draws a metric and the error of the reconstruction against the mean age of the average.

    Args:
        curve: What was measured.
        path: File to write; its suffix names the format.
    """
    figure = Figure(figsize=(7, 5.4), layout='constrained')
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    ages, metrics, errors, names = zip(*sorted(curve.points))
    above.plot(ages, metrics, 'o-', color=_AVERAGE, label='average')
    for age, metric, name in zip(ages, metrics, names):
        if (age, metric) != curve.own:
            above.annotate(
                name, (age, metric), textcoords='offset points', xytext=(1, 5), rotation=45, fontsize='small')
    above.plot(*curve.own, 's', color='black', label="the run's own average", zorder=3)
    for name, level in curve.levels.items():
        above.axhline(level, color=_RAW, linestyle='--', label=name)
    above.set_ylabel(curve.metric)
    above.margins(y=0.2)
    above.legend()
    below.plot(ages, [100 * error for error in errors], 'o-', color=_ERROR)
    below.set_ylabel('error of the weights, %')
    below.set_ylim(bottom=0)
    below.set_xscale('log')
    below.set_xlabel('mean age of the averaged weights, updates')
    for axis in (above, below):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
