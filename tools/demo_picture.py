"""The picture of the demo: predicted boxes over the true ones."""

from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

TRUE_COLOUR, PREDICTED_COLOUR = 'limegreen', 'orangered'


class Detections(NamedTuple):
    """An image with its boxes, as arrays of (x1, y1, x2, y2) in pixels: shapes (n, 4) and (m, 4)."""

    image: NDArray[Any]
    true: NDArray[Any]
    predicted: NDArray[Any]


def draw_detections(detections: list[Detections], title: str, path: Path) -> None:
    """Draws predicted boxes over the true ones, each image in a panel of its own."""
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
        ncols=2,
    )
    figure.savefig(path, dpi=120)


def _draw_boxes(axis: Axes, boxes: NDArray[Any], colour: str, linewidth: float) -> None:
    for left, top, right, bottom in boxes:
        axis.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=linewidth)
        )
