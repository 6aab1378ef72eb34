import codecs
import os
import re
from collections import OrderedDict
from fractions import Fraction

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer

from mmyolo_ema import checkpoint

pytestmark = pytest.mark.any_family


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


@pytest.mark.parametrize(
    'value',
    [
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
    ],
    ids=repr,
)
def test_numbers_and_text_of_numpy_come_back(through_a_file, value):
    read = through_a_file([(value,), {'key': value}])
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


def test_shared_containers_come_back_as_one(through_a_file):
    shared = [np.float64(1)]
    read = through_a_file(dict(one=shared, two=shared))
    assert read['one'] is read['two']
    assert read['one'] == [1.0]


def circle():
    container = dict(a=[])
    container['a'].append(container)
    return container


def shared_tuples(levels):
    tuples = ()
    for _ in range(levels):
        tuples = (tuples, tuples)
    return tuples


def nested(levels):
    lists = []
    for _ in range(levels):
        lists = [lists]
    return lists


def with_attributes(kind, **attributes):
    instance = kind()
    vars(instance).update(attributes)
    return instance


@pytest.mark.slow
@pytest.mark.parametrize(
    ('make', 'what'),
    [
        (circle, 'a container that holds itself'),
        (lambda: shared_tuples(40), 'tuples that are nested too deep'),
        (lambda: {shared_tuples(24): 1}, 'tuples that are nested too deep'),
        (lambda: shared_tuples(100), 'tuples that are nested too deep'),
        (lambda: nested(200), 'containers in each other, more than 64 deep'),
        (lambda: [np.zeros(10**5)] * 10**4, 'far more than its size, by naming one thing many times'),
        (lambda: [torch.zeros(1).expand(10**9)], 'far more than its size, by naming one thing many times'),
        (lambda: [[[['text'] * 1000] * 1000] * 1000] * 1000, 'far more than its size, by naming one thing many times'),
        (lambda: 10**400, 'an integer of 1329 bits'),
        (lambda: torch.eye(2).to_sparse(), 'torch._utils._rebuild_sparse_tensor, which is not on the list'),
        (
            lambda: torch.ones(2, device='meta'),
            'torch._utils._rebuild_meta_tensor_no_storage, which is not on the list',
        ),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8), 'torch._utils._rebuild_qtensor'),
        (lambda: torch.ones(2, dtype=torch.uint8).view(torch.bits8), 'torch.bits8, which is not on the list'),
        (lambda: {'a\x1b[2J': torch.ones(1)}, 'a name with what a terminal would obey'),
        (lambda: Call(codecs.encode, ('a' * 10**5, 'punycode')), '_codecs.encode, which is not on the list'),
        (lambda: Call(torch.FloatTensor, (10**6,)), 'torch.FloatTensor, which is not on the list'),
        (lambda: Call(bytearray, (10**12,)), 'bytearray, which is not on the list'),
        (lambda: with_attributes(OrderedDict, _metadata=5), 'versions of modules in a form that is unknown'),
        (lambda: with_attributes(OrderedDict, _metadata={'': dict(version='text')}), 'versions of modules that are no'),
    ],
)
def test_what_takes_forever_or_is_not_plain_is_refused_in_words(through_a_file, make, what):
    with pytest.raises(ValueError, match=re.escape(f'refused, and nothing in it was run: it holds {what}')):
        through_a_file(make())


def test_attributes_over_methods_are_left_out(through_a_file):
    read = through_a_file(with_attributes(OrderedDict, get=5))
    assert (read.get('a'), vars(read)) == (None, {})


@pytest.mark.parametrize('content', [None, [0.0], 'text', 5])
def test_array_without_content_is_refused(through_a_file, content):
    dtype = np.dtype('f8')
    array = Call(np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b'b'), (1, (4,), dtype, False, content))
    with pytest.raises(ValueError, match=r'it holds numpy\.ndarray'):
        through_a_file(array)


@pytest.fixture
def user_list():
    before = torch.serialization.get_safe_globals()
    yield
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)


def test_list_of_the_user_adds_to_ours_and_replaces_nothing(through_a_file, user_list):
    allowed = [
        getattr,
        np.ndarray,
        np.dtype,
        np.zeros(0).__reduce__()[0],
        np.float64(0).__reduce__()[0],
        HistoryBuffer,
        Fraction,
    ]
    torch.serialization.add_safe_globals(allowed)
    assert through_a_file([HistoryBuffer([1.0], [1]), np.float64(2), Call(Fraction, (1, 2))])[1:] == [2, Fraction(1, 2)]
    with pytest.raises(ValueError, match=r'it holds builtins\.getattr'):
        through_a_file(Call(getattr, ('text', 'join')))
    assert set(allowed) <= set(torch.serialization.get_safe_globals())


@pytest.mark.parametrize(
    'value',
    [
        Call(np.ndarray, ((1,), Call(np.dtype, ('O',)), b'AAAAAAAA')),
        np.array([None], dtype=object),
        np.zeros(1, dtype=[('field', 'O')]),
        np.dtype([('field', 'f8')]),
        Call(np.ndarray, ((2,), Call(np.dtype, ('f8',)), b'')),
        np.longdouble(1),
        np.ones(2, np.clongdouble),
        HistoryBuffer(['text'], [1]),
        Call(bytes, (10**15,)),
        Call(np.dtype, (5,)),
        Call(HistoryBuffer, ([1], [1])),
        Call(getattr, (HistoryBuffer, '__init__')),
        Call(getattr, ('text', 'join')),
    ],
    ids=[
        'address as object',
        'objects',
        'field of objects',
        'fields',
        'bare array',
        'of a machine',
        'complex of one',
        'history of text',
        'huge',
        'no code',
        'bare history',
        'method',
        'attribute',
    ],
)
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
        through_a_file(Call(os.mkdir, (str(tmp_path / 'harm'),)))
    assert not (tmp_path / 'harm').exists()
