import pytest

from mmyolo_ema.cli.schedule_tables import Setting, report
from mmyolo_ema.schedules import Constant, Ramp


@pytest.mark.parametrize(
    ('schedule', 'updates', 'verdict'),
    [
        (Ramp(1e-4, 2000), 2_001, 'about 4 of them: practically the raw weights'),
        (Ramp(1e-4, 2000), 5_001, 'about 23 of them: practically the raw weights'),
        (Ramp(2e-4, 2000), 600_000, 'about 9,999 of them: a short average, its mean age is below 1%'),
        (Ramp(2e-4, 2000), 138_618, 'about 9,999 of them: its mean age is between 1% and 20% of the run so far'),
        (Constant(5e-4), 4_000, 'much of it stems from early in the run, its mean age is above 20%'),
        (Constant(2e-4), 480, 'about 1 of them: mostly the weights that it began with'),
    ],
)
def test_verdict_follows_age_and_size(schedule, updates, verdict):
    said = report(Setting('config', schedule), updates).answer[0]
    assert 'the end,' in said
    assert verdict in said


def test_table_has_a_row_for_each_point_of_a_tiny_run():
    told = report(Setting('config', Ramp()), 3, updates_per_epoch=1.5)
    assert told.table.row_count == 3
    assert told.at_end.updates == 3
