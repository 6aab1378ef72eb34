from benchmarks.timing import Timing, interleaved


def test_each_function_is_called_once_a_round_and_after_the_warm_up():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in 'abc'}
    times = interleaved(functions, rounds=20, warm_up=2)
    assert list(times) == ['a', 'b', 'c']
    assert calls[:6] == ['a', 'a', 'b', 'b', 'c', 'c']
    rounds = [calls[start : start + 3] for start in range(6, len(calls), 3)]
    assert len(rounds) == 20
    assert all(sorted(turn) == ['a', 'b', 'c'] for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1, 'always in the same order'


def test_what_comes_before_is_called_before_each_timed_call():
    calls = []
    interleaved({'a': lambda: calls.append('a')}, rounds=2, before=lambda: calls.append('before'), warm_up=0)
    assert calls == ['before', 'a', 'before', 'a']


def test_timing_is_median_and_quartiles():
    assert Timing.of([5, 1, 2, 3, 4]) == Timing(2, 3, 4)
