import json

import mmcv
import numpy as np
import pytest

from benchmarks.gain import digits


@pytest.fixture
def canvases(monkeypatch, tmp_path):
    """Writes canvases of squares; those of the held-out scans are smaller."""
    scans = np.zeros((1797, 8, 8))
    scans[:, 2:6, 2:6] = 16
    scans[1300:, 2, :] = scans[1300:, :, 2] = 0
    monkeypatch.setattr(digits, '_scans', lambda: scans)
    digits.write_digits(tmp_path)
    return tmp_path


def test_no_digit_is_in_both_splits(canvases):
    largest = []
    for name, count in (('train', 160), ('val', 16)):
        coco = json.loads((canvases / f'{name}.json').read_text())
        assert len(coco['images']) == count
        largest.append(max(annotation['bbox'][2] for annotation in coco['annotations']))
    assert largest[0] > 1.2 * largest[1]


def test_boxes_lie_around_the_ink(canvases):
    coco = json.loads((canvases / 'val.json').read_text())
    image = coco['images'][0]
    canvas = mmcv.imread(canvases / 'val' / image['file_name'], flag='grayscale').astype(float)
    outside = np.ones(canvas.shape, bool)
    boxes = [annotation['bbox'] for annotation in coco['annotations'] if annotation['image_id'] == image['id']]
    for x, y, width, height in boxes:
        assert canvas[y : y + height, x : x + width].mean() > 70
        assert abs(width - height) <= 1
        outside[y - 2 : y + height + 2, x - 2 : x + width + 2] = False
    assert len(boxes) > 3
    assert canvas[outside].mean() == pytest.approx(40, abs=3)


def test_digits_are_those_of_scikit_learn():
    pytest.importorskip('sklearn')
    scans = digits._scans()
    assert (scans.shape, scans.min(), scans.max()) == ((1797, 8, 8), 0, 16)
