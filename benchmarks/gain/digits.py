"""A second data set to detect in: scanned digits on canvases, in COCO's form."""

import json
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from numpy.typing import NDArray

_SIZE = 128
# Of 1,797 images of digits, those before are on training canvases, those from here on are held out.
_SPLIT = 1300
# Places that are tried on a canvas; one that overlaps a digit stays empty.
_PLACES = 16


def write_digits(folder: Path) -> None:
    """Writes 160 training canvases and 16 held-out ones of scikit-learn's digits, the same files each time.

    All digits are of one category: they shall be found, not read.

    Args:
        folder: Where ``train``, ``val``, ``train.json`` and ``val.json`` are written.

    Raises:
        ImportError: If scikit-learn is not installed.
    """
    scans = _scans()
    random = np.random.default_rng(0)
    for name, canvases, part in (('train', 160, slice(_SPLIT)), ('val', 16, slice(_SPLIT, None))):
        images, annotations = [], []
        for number in range(canvases):
            canvas, digits = _compose(scans[part], random)
            mmcv.imwrite(canvas, str(folder / name / f'{number}.png'))
            images.append(dict(id=number, file_name=f'{number}.png', width=_SIZE, height=_SIZE))
            annotations += [dict(digit, image_id=number) for digit in digits]
        numbered = [dict(annotation, id=number) for number, annotation in enumerate(annotations, 1)]
        coco = dict(images=images, annotations=numbered, categories=[dict(id=1, name='digit')])
        (folder / f'{name}.json').write_text(json.dumps(coco))


def _scans() -> NDArray[np.float64]:
    """Returns 8 x 8 pixels of 0 to 16 for each digit."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(str(error), name='scikit-learn') from error
    return load_digits().images


def _compose(scans: NDArray[np.float64], random: np.random.Generator) -> tuple[NDArray[np.uint8], list[dict[str, Any]]]:
    """Returns a noisy canvas with digits of several sizes and contrasts, and their annotations."""
    canvas, occupied = random.normal(40, 20, (_SIZE, _SIZE)), np.zeros((_SIZE, _SIZE), bool)
    annotations = []
    for _ in range(_PLACES):
        scan, size = random.choice(scans), int(random.integers(14, 33))
        top, left = random.integers(_SIZE - size + 1, size=2).tolist()
        window = slice(top, top + size), slice(left, left + size)
        if occupied[window].any():
            continue
        occupied[window] = True
        ink = mmcv.imresize(scan, (size, size)) / 16
        canvas[window] += ink * random.uniform(60, 180)
        (y, x), (height, width) = (extent(np.nonzero(ink > 0.25), axis=1) for extent in (np.min, np.ptp))
        box = [left + int(x), top + int(y), int(width) + 1, int(height) + 1]
        annotations.append(dict(category_id=1, bbox=box, area=box[2] * box[3], iscrowd=0))
    return canvas.clip(0, 255).astype(np.uint8), annotations
