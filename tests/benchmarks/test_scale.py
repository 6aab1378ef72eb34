import pytest

from benchmarks import scale
from benchmarks.scale import fits, measure_scale


def test_model_of_the_wanted_size_is_timed():
    point = measure_scale(tensors=10, weights=1_000, rounds=1)
    assert (point.tensors, point.weights) == (10, 1_000)
    assert list(point.steps) == ['mmyolo_ema', 'mmengine', 'limit']


@pytest.mark.parametrize(('free', 'expected'), [(2_300, True), (2_200, False)])
def test_models_that_need_more_than_the_free_memory_do_not_fit(monkeypatch, free, expected):
    monkeypatch.setattr(scale, '_free_memory', lambda device: free)
    assert fits(100, 'cpu') is expected  # 5 copies of 4 bytes, and a tenth to spare


def test_free_memory_is_asked_for():
    assert fits(1, 'cpu')
    assert not fits(10**15, 'cpu')
