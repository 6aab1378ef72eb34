import matplotlib.image
import numpy as np
import pytest

from mmyolo_ema.plots import Detections, draw_detections


@pytest.mark.parametrize('count', [1, 4, 5])
def test_boxes_are_drawn_over_each_image(tmp_path, count):
    box = np.array([[2.0, 2.0, 10.0, 10.0]])
    image = np.zeros((16, 16), np.uint8)
    draw_detections([Detections(image, box, np.zeros((0, 4)))] * count, 'title', tmp_path / 'true.png')
    draw_detections([Detections(image, box, box)] * count, 'title', tmp_path / 'both.png')
    true, both = (matplotlib.image.imread(tmp_path / f'{name}.png') for name in ('true', 'both'))
    assert true.shape == both.shape
    assert not np.array_equal(true, both)
