import pytest
from torch import nn

from benchmarks.pictures import draw_sharing
from benchmarks.report import sharing_table
from benchmarks.sharing import measure_sharing


@pytest.mark.slow
def test_processes_that_share_an_average_have_a_part_each(tmp_path):
    cost = measure_sharing('layer', nn.Linear(500, 100), processes=2, rounds=1)
    assert cost.whole_memory == 4 * 501 * 100 + 8  # and the count of updates
    assert cost.shared_memory == pytest.approx(cost.whole_memory / 2, rel=0.01)
    assert min(cost.whole.median, cost.shared.median, cost.gather.median, cost.swap.median) > 0
    assert sharing_table([cost]).row_count == 1
    draw_sharing([cost], tmp_path / 'sharing.png')
    assert (tmp_path / 'sharing.png').exists()
