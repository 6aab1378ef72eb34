"""The classes that a checkpoint of MMEngine names beside tensors, read without calling them.

They are its log history and the numpy arrays and scalars in that. torch's safe reader calls what it is allowed to
with arguments from the file, and numpy's classes are not safe to call so: an array of objects takes bytes for
addresses. So the reader is given stand-ins, which record what the file says and do nothing; afterwards they are
replaced by what they stand for, if that is plain numbers or text.
"""

import re
from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any, Union

import numpy as np
from mmengine.logging import HistoryBuffer

__all__ = ['restored', 'stand_ins']

_NUMBERS_OR_TEXT = re.compile(r'[?biufcSU]\d*')


class _Recorded:
    """Records the arguments and the state that a file gives to a class."""

    name: str
    args: tuple = ()
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

    def build(self) -> np.dtype:
        code, byte_order = self.args[0], self.state[1] if self.state else '='
        if not _NUMBERS_OR_TEXT.fullmatch(code) or byte_order not in '<>=|':
            raise UnpicklingError(f'GLOBAL numpy.dtype.{code}')
        return np.dtype(code).newbyteorder(byte_order)


class _Scalar(_Recorded):
    name = 'numpy.generic'

    def build(self) -> np.generic:
        dtype, content = self.args
        return np.frombuffer(content, dtype.build())[0]


class _Array(_Recorded):
    name = 'numpy.ndarray'

    def build(self) -> np.ndarray:
        _, shape, dtype, is_fortran, content = self.state
        return np.ndarray(shape, dtype.build(), content, order='F' if is_fortran else 'C').copy()


class _History(_Recorded):
    name = 'mmengine.logging.HistoryBuffer'

    def build(self) -> HistoryBuffer:
        # The file also names its statistics, for all histories of the process; they stay as they are here.
        values, counts = (self.state[name].build() for name in ('_log_history', '_count_history'))
        return HistoryBuffer(values, counts, self.state['max_length'])


def _getattr(owner: Any, name: Any) -> str:
    """Stands in for ``getattr``, by which a log history names its statistics."""
    if owner is not _History or name not in ('min', 'max', 'current', 'mean'):
        raise UnpicklingError('GLOBAL builtins.getattr')
    return name


def _bytes(*args: Any) -> bytes:
    """Stands in for ``bytes``, which makes the content of an empty array."""
    if args:
        raise UnpicklingError('GLOBAL builtins.bytes')
    return b''


def stand_ins() -> list[Union[Callable, tuple[Callable, str]]]:
    """Returns what stands in for which name, in the form of ``torch.serialization.safe_globals``."""
    # Where numpy keeps its builders changed in version 2; files written with either are read with either.
    builders = [(stand_in, f'numpy.{core}.multiarray.{name}') for core in ('core', '_core')
                for stand_in, name in ((_Array, '_reconstruct'), (_Scalar, 'scalar'))]
    return [(_Array, 'numpy.ndarray'), (_DType, 'numpy.dtype'), *builders, (_getattr, 'builtins.getattr'),
            (_bytes, 'builtins.bytes'), (_History, 'mmengine.logging.history_buffer.HistoryBuffer')]


def restored(value: Any, seen: Union[set[int], None] = None) -> Any:
    """Replaces the stand-ins in what a file holds, in place, by what they stand for.

    Args:
        value: What the reader returned.
        seen: Containers that are done, by ``id``; for the function's own calls.

    Returns:
        The value, or what it stands for.

    Raises:
        UnpicklingError: If a stand-in is for other than numbers, text, arrays of those, or a log history.
    """
    seen = set() if seen is None else seen
    if isinstance(value, _Recorded):
        try:
            return value.build()
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise UnpicklingError(f'GLOBAL {value.name} in a form that is unknown') from error
    if isinstance(value, (tuple, frozenset)):
        return type(value)(restored(item, seen) for item in value)
    if isinstance(value, (dict, list, set)) and id(value) not in seen:
        seen.add(id(value))
        _restore_items(value, seen)
        # Such as the versions of modules that a state dictionary carries.
        for name, item in list(getattr(value, '__dict__', {}).items()):
            vars(value)[name] = restored(item, seen)
    return value


def _restore_items(container: Union[dict, list, set], seen: set[int]) -> None:
    if isinstance(container, list):
        container[:] = [restored(item, seen) for item in container]
    elif isinstance(container, set):
        items = [restored(item, seen) for item in container]
        container.clear()
        container.update(items)
    else:
        pairs = [restored(pair, seen) for pair in container.items()]
        container.clear()
        for key, value in pairs:
            container[key] = value
