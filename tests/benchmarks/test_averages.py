import copy

import pytest
import torch
from rich.console import Console

from benchmarks.averages import BARS, AveragesCost, measure_averages
from benchmarks.report import averages_table
from benchmarks.steps import BARE
from benchmarks.timing import Timing


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def test_steps_of_several_averages_are_timed(net, device):
    before = copy.deepcopy(net.state_dict())
    cost = measure_averages('net', net, rounds=2, device=device)
    assert list(cost.steps) == [
        BARE,
        '1 average',
        '2 averages',
        '4 averages',
        "4 of mmdet's class",
        'float32 average of bfloat16',
    ]
    assert all(step.median > 0 for step in cost.steps.values())
    assert all(name in cost.steps and to in cost.steps for name, (to, _) in BARS.items())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_report_says_whether_a_bar_is_met():
    medians = {BARE: 1, '1 average': 1.1, '4 averages': 4.1, 'float32 average of bfloat16': 3}
    table = averages_table(AveragesCost('net', 10, {name: Timing(0, median, 9) for name, median in medians.items()}))
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    assert '4.10 x bare _foreach_lerp_, at most 4.2: met' in captured.get()
    assert '2.73 x 1 average, at most 2.5: missed' in captured.get()
