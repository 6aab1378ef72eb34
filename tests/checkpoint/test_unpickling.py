import os

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmyolo_ema import checkpoint


class Call:
    """Is pickled as a call of a function."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.fixture
def through_a_file(tmp_path):
    """Returns a function that stores a value in a checkpoint and reads it back."""

    def store_and_read(value):
        torch.save(dict(state_dict={}, value=value), tmp_path / 'file.pth')
        return checkpoint.read(tmp_path / 'file.pth')['value']

    return store_and_read


@pytest.mark.parametrize('value', [
    np.arange(6.0).reshape(2, 3),
    np.asfortranarray(np.arange(6).reshape(2, 3)),
    np.arange(3, dtype='>i4'),
    np.array(['a', 'bc']),
    np.array([True, False]),
    np.zeros((0, 3)),
    np.array(3.5),
    np.int32(4),
    np.float16(2),
    np.complex64(1j),
    np.bool_(True),
], ids=repr)
def test_numbers_and_text_of_numpy_come_back(through_a_file, value):
    read = through_a_file([(value, ), {'key': value}])
    for restored in (read[0][0], read[1]['key']):
        assert type(restored) is type(value)
        assert restored.dtype == value.dtype
        assert restored.shape == value.shape
        assert np.array_equal(restored, value)


def test_log_history_comes_back_and_can_go_on(through_a_file):
    history = through_a_file(HistoryBuffer([1.0, 3.0], [1, 2], max_length=3))
    history.update(8.0)
    history.update(9.0)
    assert [values.tolist() for values in history.data] == [[3, 8, 9], [2, 1, 1]]
    assert history.statistics('max') == 9
    assert through_a_file(HistoryBuffer()).data[0].size == 0


def test_shared_and_circular_containers_come_back(through_a_file):
    shared = [np.float64(1)]
    circle = dict(one=shared, two=shared)
    circle['self'] = circle
    read = through_a_file(circle)
    assert read['one'] is read['two']
    assert read['self'] is read
    assert read['one'] == [1.0]


@pytest.mark.parametrize('value', [
    Call(np.ndarray, ((1, ), Call(np.dtype, ('O', )), b'AAAAAAAA')),
    np.array([None], dtype=object),
    np.zeros(1, dtype=[('field', 'O')]),
    np.dtype([('field', 'f8')]),
    Call(np.ndarray, ((2, ), Call(np.dtype, ('f8', )), b'')),
    Call(bytes, (10**15, )),
    Call(np.dtype, (5, )),
    Call(HistoryBuffer, ([1], [1])),
    Call(getattr, (HistoryBuffer, '__init__')),
    Call(getattr, ('text', 'join')),
], ids=['address as object', 'objects', 'field of objects', 'fields', 'bare array', 'huge', 'no code', 'bare history',
        'method', 'attribute'])
def test_anything_else_of_numpy_is_refused_before_it_is_built(through_a_file, value):
    with pytest.raises(ValueError, match=r'refused, and nothing in it was run: it holds (numpy|builtins|mmengine)\.'):
        through_a_file(value)


def test_statistics_of_this_process_are_left_alone(through_a_file):
    before = dict(HistoryBuffer._statistics_methods)
    history = HistoryBuffer([1.0, 9.0], [1, 1])
    state = dict(history.__getstate__(), statistics_methods={'mean': Call(getattr, (HistoryBuffer, 'max'))})
    read = through_a_file(Call(HistoryBuffer, (), state))
    assert read.statistics('mean') == 5
    assert HistoryBuffer._statistics_methods == before


def test_call_of_the_system_is_refused(through_a_file, tmp_path):
    with pytest.raises(ValueError, match=r'it holds posix\.mkdir'):
        through_a_file(Call(os.mkdir, (str(tmp_path / 'harm'), )))
    assert not (tmp_path / 'harm').exists()
