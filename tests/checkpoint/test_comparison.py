import numpy as np
import pytest
import torch

from mmyolo_ema import checkpoint
from mmyolo_ema.checkpoint import compare


@pytest.fixture
def file(tmp_path):
    """Returns a function that writes weights to a file."""

    def write(name, **weights):
        torch.save(dict(state_dict=weights), tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.slow
def test_files_of_the_same_weights_are_equal(trained, tmp_path):
    checkpoint.extract(trained, tmp_path / 'ema.pth')
    assert compare(trained, trained).are_equal
    assert compare(trained, tmp_path / 'ema.pth').are_equal
    checkpoint.extract(trained, tmp_path / 'raw.safetensors', 'raw')
    assert compare(tmp_path / 'raw.safetensors', trained, 'raw').are_equal
    assert not compare(trained, tmp_path / 'raw.safetensors').are_equal


def test_weights_that_a_file_does_not_hold_are_not_compared(trained, tmp_path):
    checkpoint.extract(trained, tmp_path / 'ema.pth')
    with pytest.raises(ValueError, match=r'ema\.pth: it holds the ema weights only'):
        compare(trained, tmp_path / 'ema.pth', 'raw')


def test_shared_tensor_is_compared_once(trained):
    numbers = {group.group: group.numbers for group in compare(trained, trained).groups}
    assert numbers == {group.group: group.numbers for group in checkpoint.inspect(trained).differences}


def test_distance_is_relative_to_the_second(file):
    first, second = file('a', weight=torch.tensor([3.0, 4.0, 1.0])), file('b', weight=torch.tensor([3.0, 0.0, 1.0]))
    comparison = compare(first, second)
    (group,) = comparison.groups
    assert group.relative == pytest.approx(4 / 10**0.5)
    assert (group.differing, comparison.farthest[0].differing, comparison.are_equal) == (1, 1, False)


@pytest.mark.parametrize(
    ('first', 'second', 'where'),
    [
        (dict(a=torch.ones(1), b=torch.ones(1)), dict(a=torch.ones(1)), 'only_in_one'),
        (dict(a=torch.ones(1)), dict(a=torch.ones(1), b=torch.ones(1)), 'only_in_other'),
        (dict(b=torch.ones(2)), dict(b=torch.ones(1)), 'other_shape'),
        (dict(b=torch.ones(1)), dict(b=torch.ones(1).half()), 'other_dtype'),
        (dict(b=dict(state=1)), dict(b=dict(state=2)), 'other_value'),
        (dict(b=None), dict(a=1), 'only_in_one'),
        (dict(b=[torch.ones(2)]), dict(b=[torch.zeros(2)]), 'other_value'),
        (dict(b=torch.ones(1)), dict(b=1), 'other_value'),
    ],
)
def test_what_differs_is_named(file, first, second, where):
    comparison = compare(file('first', **first), file('second', **second))
    assert not comparison.are_equal
    assert getattr(comparison, where)[0].split()[0] == 'b'


def test_nan_at_the_same_place_is_equal(file):
    nan = torch.tensor([1.0, float('nan'), float('inf')])
    assert compare(file('a', weight=nan), file('b', weight=nan.clone())).are_equal
    comparison = compare(file('a', weight=nan), file('b', weight=torch.tensor([1.0, 2.0, float('inf')])))
    assert not comparison.are_equal
    assert comparison.groups[0].relative is None


@pytest.mark.parametrize('value', [None, float('nan'), dict(a=[torch.ones(2), np.arange(2.0)]), np.float64('nan')])
def test_other_values_than_tensors_are_equal_to_themselves(file, value):
    assert compare(file('a', extra=value), file('b', extra=value)).are_equal


def test_tensors_without_numbers_are_refused(file):
    sparse = file('a', weight=torch.eye(2).to_sparse())
    with pytest.raises(ValueError, match=r'refused, .*: it holds torch\._utils\._rebuild_sparse_tensor'):
        compare(sparse, sparse)


def test_prefix_of_a_wrapper_is_no_difference(file):
    assert compare(file('a', **{'module.weight': torch.ones(1)}), file('b', weight=torch.ones(1))).are_equal


def test_integers_are_compared_exactly(file):
    large = torch.tensor([2**62])
    assert not compare(file('a', count=large), file('b', count=large + 1)).are_equal


def test_conjugated_view_of_a_tensor_is_another_tensor(file):
    numbers = torch.tensor([1 + 2j])
    assert not compare(file('a', a=numbers, b=numbers.conj()), file('b', a=numbers, b=numbers)).are_equal
    part = numbers.imag
    assert not compare(file('a', a=part, b=numbers.conj().imag), file('b', a=part, b=part)).are_equal
