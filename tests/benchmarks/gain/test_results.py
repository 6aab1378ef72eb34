import math

import numpy as np
import pytest
from scipy.stats import t as student

from benchmarks.gain.results import draw_gains, gain_table, paired, shared_table

NAMES = ('raw', 'ours', 'mmdet', 'mmengine', 'by_name')


def run(data, rate, raw, ours, by_name):
    """Returns the results of a training that validates twice; the second time all is 0.1 better."""
    first = dict(raw=raw, ours=ours, mmdet=raw, mmengine=0.0, by_name=by_name)
    return dict(
        data=data,
        rate=rate,
        updates=[120, 240],
        apart=dict(raw=[0.04, 0.02], by_name=[0.03, 0.01]),
        mAP={name: [value, value + 0.1] for name, value in first.items()},
    )


@pytest.fixture
def runs():
    """Three seeds of one kind of training, of which ours gains 2, 3 and 4 points, and one of another kind."""
    return [
        run('nuclei', 'flat', 0.50, 0.52, 0.51),
        run('digits', 'decayed', 0.3, 0.3, 0.3),
        run('nuclei', 'flat', 0.40, 0.43, 0.44),
        run('nuclei', 'flat', 0.45, 0.49, 0.50),
    ]


def cells(table, column):
    return list(table.columns[column].cells)


def test_difference_is_that_of_the_same_seeds():
    # The two vary by 10 points from seed to seed, their difference by 1.
    difference = paired(np.array([0.22, 0.33, 0.44]), np.array([0.20, 0.30, 0.40]))
    assert difference.mean == pytest.approx(3)
    assert difference.standard_error == pytest.approx(1 / math.sqrt(3))
    assert difference.p_value == pytest.approx(2 * student.sf(3 * math.sqrt(3), df=2))


@pytest.mark.parametrize(
    ('precision', 'expected'),
    [
        ([0.52, 0.53, 0.55], '+2.3 ± 0.3 better'),
        ([0.48, 0.47, 0.45], '-3.3 ± 0.9 no difference seen'),
        ([0.48, 0.47, 0.46], '-3.0 ± 0.6 worse'),
        ([0.50, 0.50, 0.50], '+0.0 ± 0.0 no difference seen'),
        ([0.75, 0.75, 0.75], '+25.0 ± 0.0 better'),
        ([0.501, 0.501], '+0.1 ± 0.0 no difference seen'),  # so near, and so equal, by rounding
        ([0.52], '+2.0, one seed'),
    ],
)
def test_difference_in_words(precision, expected):
    reference = np.full(len(precision), 0.5)
    if expected.startswith('+2.3'):
        reference = np.array([0.50, 0.51, 0.52])
    assert str(paired(np.array(precision), reference)) == expected


def test_table_has_a_row_for_each_validation_of_each_kind_of_training(runs):
    table = gain_table(runs)
    assert cells(table, 0) == ['nuclei', 'nuclei', 'digits', 'digits']
    assert cells(table, 1) == ['flat', 'flat', 'decayed', 'decayed']
    assert cells(table, 2) == ['3', '3', '1', '1']
    assert cells(table, 3) == ['120', '240', '120', '240']
    assert cells(table, 4) == ['45.0', '55.0', '30.0', '40.0']
    assert cells(table, 5) == ['+3.0 ± 0.6 better', '+3.0 ± 0.6 better', '+0.0, one seed', '+0.0, one seed']
    assert cells(table, 7)[0].startswith('-45.0 ± 2.9')


def test_shared_tensors_are_compared_with_ours(runs):
    table = shared_table(runs)
    assert cells(table, 4) == ['3.00%', '1.00%'] * 2
    assert cells(table, 5) == ['4.00%', '2.00%'] * 2
    assert cells(table, 6)[:2] == ['+0.3 ± 0.7 no difference seen'] * 2


def test_picture_has_a_panel_for_each_kind_of_training(runs, figures, tmp_path):
    draw_gains(runs, tmp_path / 'gain.png')
    axes = figures[0].axes
    assert [axis.get_title() for axis in axes] == ['nuclei, flat learning rate', 'digits, decayed learning rate']
    means = [line for line in axes[0].lines if len(line.get_xdata()) == 2 and line.get_marker() == 'o']
    assert [list(np.round(line.get_ydata(), 6)) for line in means] == [[3, 3], [0, 0], [-45, -45]]
