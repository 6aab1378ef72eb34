import matplotlib.image
import numpy as np

from benchmarks.pictures import Growth, StepTimes, draw_growth, draw_step_times


def test_each_class_has_a_bar_and_each_detector_a_panel(tmp_path):
    panel = StepTimes('rtmdet-tiny', {'ours': (1.0, 2.0, 3.0), 'theirs': (4.0, 5.0, 6.0)}, limit=1.5)
    draw_step_times([panel], tmp_path / 'one.png')
    draw_step_times([panel] * 5, tmp_path / 'five.png')
    draw_step_times([panel._replace(limit=4.5)], tmp_path / 'other.png')
    one, five, other = (matplotlib.image.imread(tmp_path / f'{name}.png') for name in ('one', 'five', 'other'))
    assert five.shape[0] > one.shape[0]
    assert five.shape[1] > one.shape[1]
    assert one.shape == other.shape
    assert not np.array_equal(one, other)


def test_growth_is_drawn_for_each_panel(tmp_path):
    panel = Growth('tensors', [100, 1000], {'ours': [1.0, 2.0], 'theirs': [3.0, 9.0], 'limit': [1.0, 1.0]})
    draw_growth([panel], tmp_path / 'one.png')
    draw_growth([panel, panel], tmp_path / 'two.png')
    one, two = (matplotlib.image.imread(tmp_path / f'{name}.png') for name in ('one', 'two'))
    assert two.shape[1] == 2 * one.shape[1]
