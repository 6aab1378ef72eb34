"""What the published COCO recipes of detectors average over, to compare a run with."""

from typing import NamedTuple

from mmyolo_ema.schedules.figures import Figures, figures
from mmyolo_ema.schedules.momenta import Constant

_COCO_IMAGES = 118_287


class Recipe(NamedTuple):
    """A full-length training on COCO's 118,287 images, as published.

    All ramp, over a small part of the run; at its end the ramp is forgotten, so that momentum and length tell all.
    """

    name: str
    momentum: float
    batch_size: int
    epochs: int

    @property
    def updates_per_epoch(self) -> float:
        return _COCO_IMAGES / self.batch_size

    def at_end(self) -> Figures:
        """Returns what the average is at the end of the run, in updates."""
        # Twenty horizons are as good as all: what came before has a weight of e**-20.
        at_end = figures(Constant(self.momentum), [round(20 / self.momentum)])[0]
        return at_end._replace(updates=round(self.epochs * self.updates_per_epoch))


#: From the configs that the projects released.
#: Momentum (one minus the decay that most of them name), images in an update over all GPUs, and epochs.
RECIPES = [
    Recipe('YOLOv5', 0.0001, 128, 300),
    Recipe('YOLOv8', 0.0001, 128, 500),
    Recipe('YOLOX', 0.0002, 64, 300),
    Recipe('YOLOX in MMDetection', 0.0001, 64, 300),
    Recipe('RTMDet', 0.0002, 256, 300),
    Recipe('PP-YOLOE+', 0.0002, 64, 80),
    Recipe('RT-DETR', 0.0001, 16, 72),
    Recipe('D-FINE-L', 0.0001, 32, 80),
]
