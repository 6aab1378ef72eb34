import pytest

from mmyolo_ema.schedule import Constant, Ramp
from mmyolo_ema.schedule_report import Setting, report


@pytest.mark.parametrize(('schedule', 'updates', 'verdict'), [
    (Ramp(1e-4, 2000), 2_001, 'about 4 of them: practically the raw weights'),
    (Ramp(1e-4, 2000), 5_001, 'about 23 of them: a short average, its mean age is below 1%'),
    (Ramp(2e-4, 2000), 138_618, 'about 9,999 of them: its mean age is between 1% and 20% of the run so far'),
    (Constant(5e-4), 4_000, 'much of it stems from early in the run, its mean age is above 20%'),
    (Constant(2e-4), 480, 'about 1 of them: mostly the weights that it began with'),
])
def test_verdict_follows_age_and_size(schedule, updates, verdict):
    assert verdict in report(Setting('config', schedule), updates).words[-1]


@pytest.mark.parametrize('interval', [1, 3])
def test_what_would_suit_is_as_old_as_it_says(interval):
    said = report(Setting('config', Ramp(gamma=1e5, interval=interval)), 2_000).words[-1]
    momentum, gamma = (float(part.split('=')[1].split()[0]) for part in said.split('. ')[1].split(' and ')[:2])
    better = report(Setting('better', Ramp(momentum, gamma, interval)), 2_000)
    assert better.at_end.mean_age / 2_000 == pytest.approx(0.04, rel=0.01)
    assert 'would make it' not in better.words[-1]


def test_table_has_a_row_for_each_point_of_a_tiny_run():
    told = report(Setting('config', Ramp()), 3, updates_per_epoch=1.5)
    assert told.table.row_count == 3
    assert told.at_end.updates == 3
