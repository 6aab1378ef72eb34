"""The classes that a checkpoint of MMEngine names beside tensors, read without calling them.

They are its log history and the numpy arrays and scalars in that. torch's safe reader calls what it is allowed to
with arguments from the file, and numpy's classes are not safe to call so: an array of objects takes bytes for
addresses. So the reader is given stand-ins, which record what the file says and do nothing; afterwards they are
replaced by what they stand for, if that is plain numbers or text. Of what torch itself allows, it is given what makes
dense tensors and plain containers, within a budget: sparse tensors are built unchecked, others hold what was in the
memory.
"""

import math
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pickle import UnpicklingError
from threading import Lock
from typing import Any, Optional

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor, nn
from torch.serialization import StorageType

from mmyolo_ema._upstream import allowed_globals, only_allowed
from mmyolo_ema.checkpoint.program import MOST_BITS_OF_KEY, MOST_DEPTH, NotPlain

# Without those that differ between machines, which torch's reader takes in no form.
_NUMBERS_OR_TEXT = re.compile(r'\?|b1?|[iu][1248]|f[248]|c8|c16|[SU]\d*')

# Of the names that torch's reader knows, besides dtypes and storages.
_OF_TORCH = {
    'builtins.complex',
    'torch.Size',
    'torch.device',
    'torch._utils._rebuild_parameter',
    'torch._utils._rebuild_tensor',
    'torch._utils._rebuild_tensor_v2',
    'torch._utils._rebuild_tensor_v3',
}

# The kinds of numbers that torch computes with, or converts to others; it has some that it only stores.
_DTYPES = {
    getattr(torch, name)
    for name in (
        'bool',
        'uint8',
        'int8',
        'int16',
        'int32',
        'int64',
        'uint16',
        'uint32',
        'uint64',
        'float16',
        'bfloat16',
        'float32',
        'float64',
        'complex32',
        'complex64',
        'complex128',
        'float8_e4m3fn',
        'float8_e4m3fnuz',
        'float8_e5m2',
        'float8_e5m2fnuz',
        'float8_e8m0fnu',
    )
    if hasattr(torch, name)
}

# What moves the cursor, turns the direction of writing, or cannot be written.
_CONTROL = re.compile('[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]')

# A file holds its weights by name, or sets of them.
_DEPTH_OF_WEIGHTS = 2

# What an item of a container takes, about.
_BYTES_OF_ITEM = 64

# Integers of more bits are no counts and no seeds.
_MOST_BITS = 128

_LEAVES = {type(None), bool, float, complex, torch.dtype, torch.device}

# The reader's names are the process's.
_LOCK = Lock()


class _Recorded:
    """Records the arguments and the state that a file gives to a class."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *args: Any) -> None:
        self.args = args

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def build(self) -> Any:
        """Returns what this stands for."""
        raise NotImplementedError


class _DType(_Recorded):
    name = 'numpy.dtype'

    def build(self) -> np.dtype[Any]:
        code, byte_order = self.args[0], self.state[1] if self.state else '='
        if not _NUMBERS_OR_TEXT.fullmatch(code) or byte_order not in '<>=|':
            raise UnpicklingError(f'GLOBAL numpy.dtype.{code}')
        return np.dtype(code).newbyteorder(byte_order)


class _Scalar(_Recorded):
    name = 'numpy.generic'

    def build(self) -> np.generic:
        dtype, content = self.args
        return np.frombuffer(_checked(content), dtype.build())[0]


class _Array(_Recorded):
    name = 'numpy.ndarray'

    def build(self) -> np.ndarray[Any, Any]:
        _, shape, dtype, is_fortran, content = self.state
        if any(type(size) is not int for size in shape) or math.prod(shape) > len(_checked(content)):
            raise ValueError(f'too few bytes for the shape {shape}')
        return np.ndarray(shape, dtype.build(), content, order='F' if is_fortran else 'C').copy()


class _History(_Recorded):
    name = 'mmengine.logging.HistoryBuffer'

    def build(self) -> HistoryBuffer:
        # The file also names its statistics, for all histories of the process; they stay as they are here.
        values, counts = (self.state[name].build() for name in ('_log_history', '_count_history'))
        if (
            not all(
                isinstance(array, np.ndarray) and array.ndim == 1 and array.dtype.kind in 'biuf'
                for array in (values, counts)
            )
            or type(self.state['max_length']) is not int
        ):
            raise TypeError('a log history is two rows of numbers')
        return HistoryBuffer(values, counts, self.state['max_length'])


def _getattr(owner: Any, name: Any) -> str:
    """Stands in for ``getattr``, by which a log history names its statistics."""
    if owner is not _History or name not in ('min', 'max', 'current', 'mean'):
        raise UnpicklingError('GLOBAL builtins.getattr')
    return name


def _checked(content: Any) -> bytes:
    """Returns the content of an array, without which numpy would take what is in the memory."""
    if not isinstance(content, bytes):
        raise TypeError(f'{type(content).__name__} for the content of an array')
    return content


class _Budget:
    """How much memory may still be taken, in bytes."""

    def __init__(self, most_bytes: float) -> None:
        self._left = most_bytes

    def spend(self, count: float) -> None:
        self._left -= count
        if self._left < 0:
            raise NotPlain('far more than its size, by naming one thing many times')

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Calls a function that makes something as large as its arguments."""
        for arg in args:
            if isinstance(arg, (str, bytes)):
                self.spend(len(arg))
            elif isinstance(arg, (dict, list, set, tuple)):
                self.spend(len(arg) * _BYTES_OF_ITEM)
        return function(*args)


def _set(items: Any = ()) -> set[Any]:
    return set(_checked_keys(items))


def _counter(counts: dict[Any, Any]) -> Counter[Any]:
    return Counter(dict(zip(_checked_keys(counts), counts.values())))


def _ordered_dict(pairs: Any = ()) -> OrderedDict[Any, Any]:
    """Stands in for ``OrderedDict``, which Python 2 stored with its items."""
    pairs = [(key, value) for key, value in pairs]
    return OrderedDict(zip(_checked_keys([key for key, _ in pairs]), (value for _, value in pairs)))


def _checked_keys(keys: Any) -> list[Any]:
    """Returns what a call makes keys of: text, or numbers that are not all of one hash."""
    keys = list(keys)
    if not all(map(_may_be_key, keys)):
        raise NotPlain('a set or dictionary of what is neither text nor a number')
    return keys


def _may_be_key(key: Any) -> bool:
    if isinstance(key, int):
        return key.bit_length() <= MOST_BITS_OF_KEY
    plain = (str, bytes, float, type(None), np.generic, _Recorded)
    return isinstance(key, plain) and not isinstance(key, np.complexfloating)


def _encode(text: Any, encoding: Any) -> bytes:
    """Stands in for ``codecs.encode``, by which a file says bytes; other encodings can take minutes."""
    if encoding != 'latin1' or not isinstance(text, str):
        raise UnpicklingError('GLOBAL _codecs.encode')
    return text.encode('latin1')


def _bytes(*args: Any) -> bytes:
    """Stands in for ``bytes``, which makes the content of an empty array."""
    if args:
        raise UnpicklingError('GLOBAL builtins.bytes')
    return b''


@contextmanager
def known_names_only(most_bytes: float) -> Iterator[tuple[type, ...]]:
    """Makes torch's safe reader know the names on our list only, besides those that the user allowed it to know.

    Where both have a name, ours counts: the usual advice for MMEngine's files is to allow the real ``getattr``.

    Yields the classes that the user allowed. All calls of these names together may take so much memory.
    """
    with _LOCK:
        of_torch, of_user = allowed_globals()
        with only_allowed({**of_user, **_known(of_torch, _Budget(most_bytes))}):
            yield tuple(value for value in of_user.values() if isinstance(value, type))


def _known(of_torch: dict[str, Any], budget: _Budget) -> dict[str, Any]:
    """Returns what stands for which name in a file."""
    kinds = {
        name: value
        for name, value in of_torch.items()
        if value in _DTYPES or isinstance(value, StorageType) or value is torch.UntypedStorage
    }
    functions = {name: value for name, value in of_torch.items() if name in _OF_TORCH}
    functions |= {
        'builtins.set': _set,
        'collections.Counter': _counter,
        'collections.OrderedDict': _ordered_dict,
        '_codecs.encode': _encode,
    }
    # Where numpy keeps its builders changed in version 2; files written with either are read with either.
    recorded: dict[str, Callable[..., Any]] = {
        f'numpy.{core}.multiarray.{name}': stand_in
        for core in ('core', '_core')
        for stand_in, name in ((_Array, '_reconstruct'), (_Scalar, 'scalar'))
    }
    return {
        **kinds,
        **{name: partial(budget.call, function) for name, function in functions.items()},
        **recorded,
        'numpy.ndarray': _Array,
        'numpy.dtype': _DType,
        'builtins.getattr': _getattr,
        'builtins.bytes': _bytes,
        'mmengine.logging.history_buffer.HistoryBuffer': _History,
    }


def restored(value: Any, most_bytes: float, of_user: tuple[type, ...] = ()) -> Any:
    """Returns what a file holds as plain containers, numbers, text, dense tensors, numpy arrays and log histories.

    What the file holds once stays one object. Attributes are left out, but for the versions of a state's modules.

    Args:
        value: What the reader returned.
        most_bytes: The most that it may take where all that is shared is counted each time.
        of_user: Classes whose objects are left as they are. Defaults to none.

    Raises:
        UnpicklingError: If it holds anything else.
        NotPlain: If it holds itself, or more.
    """
    plain, size = _Restoration(of_user, _Budget(most_bytes)).restore(value)
    _Budget(most_bytes).spend(size)
    return plain


class _Restoration:
    """Makes plain data of what a file holds; each object once."""

    def __init__(self, of_user: tuple[type, ...], budget: _Budget) -> None:
        self._of_user = of_user
        self._budget = budget
        self._done: dict[int, Optional[tuple[Any, int]]] = {}

    def restore(self, value: Any, depth: int = 0) -> tuple[Any, int]:
        """Returns a value as plain data, and its size in bytes, about, where what is shared counts each time."""
        if type(value) in _LEAVES:
            return value, 8
        if id(value) not in self._done:
            if depth > MOST_DEPTH:
                raise NotPlain(f'containers in each other, more than {MOST_DEPTH} deep')
            self._done[id(value)] = None
            self._done[id(value)] = self._restore(value, depth + 1)
        done = self._done[id(value)]
        if done is None:
            raise NotPlain('a container that holds itself')
        return done

    def _restore(self, value: Any, depth: int) -> tuple[Any, int]:
        kind = type(value)
        if kind in (str, bytes):
            return value, 8 + len(value)
        if kind is int and value.bit_length() <= _MOST_BITS:
            return value, 8
        if kind in (Tensor, nn.Parameter):
            return _dense(value)
        if isinstance(value, _Recorded):
            built, size = _built(value)
            self._budget.spend(size)
            return built, size
        if kind in (dict, OrderedDict, Counter):
            return self._restore_dictionary(value, depth)
        if kind in (list, tuple, set, torch.Size):
            pairs = [self.restore(item, depth) for item in value]
            items, sizes = [item for item, _ in pairs], [size for _, size in pairs]
            made = items if kind is list else _set(items) if kind is set else tuple(items)
            return made, 8 + sum(sizes)
        if kind in self._of_user:
            return value, 8
        if kind is int:
            raise NotPlain(f'an integer of {value.bit_length()} bits')
        raise UnpicklingError(f'GLOBAL {kind.__module__}.{kind.__qualname__}')

    def _restore_dictionary(self, value: dict[Any, Any], depth: int) -> tuple[dict[Any, Any], int]:
        plain, total = type(value)(), 8
        for key, item in dict.items(value):
            (key, key_size), (item, size) = self.restore(key, depth), self.restore(item, depth)
            # MMEngine prints the names of weights that a model lacks.
            if (
                isinstance(key, str)
                and (depth <= _DEPTH_OF_WEIGHTS or isinstance(item, Tensor))
                and (_CONTROL.search(key))
            ):
                raise NotPlain(f'a name with what a terminal would obey: {key!r:.80}')
            plain[key] = item
            total += key_size + size
        versions = getattr(value, '__dict__', {}).get('_metadata')
        if versions is not None:
            versions, size = self.restore(versions, depth)
            try:
                vars(plain)['_metadata'] = _checked_versions(versions)
            except AttributeError as error:  # no dictionaries
                raise NotPlain('versions of modules in a form that is unknown') from error
            total += size
        return plain, total


def _dense(tensor: Tensor) -> tuple[Tensor, int]:
    """Returns a tensor without the attributes that a file may give it."""
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.dtype not in _DTYPES:
        raise NotPlain(f'a tensor that is no array of numbers ({tensor.layout}, {tensor.dtype}, {tensor.device})')
    if tensor.ndim > MOST_DEPTH:  # which torch neither computes with nor shows
        raise NotPlain(f'a tensor of {tensor.ndim} dimensions')
    tensor = tensor.detach()
    return tensor, 64 + tensor.nbytes


def _built(value: _Recorded) -> tuple[Any, int]:
    try:
        built = value.build()
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise UnpicklingError(f'GLOBAL {value.name} in a form that is unknown') from error
    arrays = built.data if isinstance(built, HistoryBuffer) else [built]
    # As lists, an array without content may still have as many items as its other sizes make.
    return built, sum(
        64 + array.nbytes + 8 * math.prod(max(size, 1) for size in array.shape)
        for array in arrays
        if isinstance(array, (np.ndarray, np.generic))
    )


def _checked_versions(versions: Any) -> dict[str, Any]:
    """Returns the versions of modules: for each, numbers by name."""
    named = {name: numbers for name, numbers in versions.items() if isinstance(name, str)}
    if not all(
        isinstance(number, (int, np.integer, type(None))) for numbers in named.values() for number in numbers.values()
    ):
        raise NotPlain('versions of modules that are no numbers')
    return OrderedDict(named)
