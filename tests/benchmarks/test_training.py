import sys

import pytest

from benchmarks import training
from benchmarks.training import measure_runs, measure_training_step


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.gpu)])
def test_training_step_trains_and_updates_the_average(detector, device, monkeypatch):
    monkeypatch.setattr(training, 'IMAGE_SIZE', 64)
    before = detector.bbox_head.rtm_reg[0].weight.detach().clone()
    cost = measure_training_step(detector, rounds=1, device=device)
    assert (before != detector.bbox_head.rtm_reg[0].weight.cpu()).any()
    assert min(cost.without.median, cost.with_average.median, cost.update.median) > 0


def test_run_is_measured_in_a_process_of_its_own():
    commands = {size: [sys.executable, '-c', f'b"x" * ({size} * 2**20)'] for size in ('1', '200')}
    costs = measure_runs(commands, rounds=2)
    assert [len(cost.seconds) for cost in costs.values()] == [2, 2]
    difference = min(costs['200'].peak_memory) - max(costs['1'].peak_memory)
    assert 150 * 2**20 < difference < 250 * 2**20


def test_run_that_fails_is_reported_with_its_last_words():
    with pytest.raises(RuntimeError, match=r'failed with status 3: no such config'):
        measure_runs({'bad': [sys.executable, '-c', 'print("no such config"); exit(3)']}, rounds=1)
