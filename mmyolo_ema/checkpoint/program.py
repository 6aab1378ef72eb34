"""What a pickle would do, followed without doing it, so that what no checkpoint needs is refused before it is done."""

import pickletools
from collections.abc import Callable
from typing import IO, Any, NamedTuple

from torch.serialization import StorageType

#: How deep containers may be in each other.
MOST_DEPTH = 64

#: Integers of more bits can be chosen so that all have one hash, as tuples and complex numbers can: a dictionary of
#: many such keys takes hours.
MOST_BITS_OF_KEY = 64

#: The memory that a step takes, about: no empty container has more, and a number far less, as what makes nothing new.
BYTES_OF_STEP, _BYTES_OF_NUMBER = 256, 48
_SMALL_STEPS = ('MARK', 'APPEND', 'SETITEM')

# torch's safe reader lacks the steps of newer ones.
_LAST_PROTOCOL = 3

# How many items a tuple may hold, with all that is in it. One can be a key, whose hash takes as long as it is large.
_MOST_ITEMS = 10**5

# How many keys may be neither text nor a number of few bits.
_MOST_ODD_KEYS = 100


class NotPlain(Exception):
    """What a checkpoint may not hold, in words that follow 'it holds'."""


class _Item(NamedTuple):
    """What is known of an item on the stack of a pickle."""

    depth: int = 0
    items: int = 1
    #: The name that it is or was made by, if a name made it.
    name: str = ''
    #: A number or text; the items of a tuple.
    value: Any = None
    is_odd_key: bool = False
    #: Whether it is one that was there already.
    is_repeated: bool = False


def check_program(program: IO[bytes], most_bytes: float, is_storage: Callable[[Any, int], bool]) -> None:
    """Raises if a pickle does what no checkpoint needs.

    That is to take far more memory than its size, a tuple that is too deep or too large, many keys of which all may
    have one hash, a call of what is no name, a new state for a tensor, which takes what is in the memory, and a storage
    that is not in the file.

    Args:
        program: The file, at the begin of the pickle; afterwards at its end.
        most_bytes: How much memory its steps may take.
        is_storage: Whether there is a storage of a name with so many bytes.

    Raises:
        NotPlain: If so.
    """
    stack: list[Any] = []
    memo: dict[Any, _Item] = {}
    odd_keys = taken_bytes = 0
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name == 'PROTO' and int(argument or 0) > _LAST_PROTOCOL:
            raise NotPlain(
                f'a pickle of protocol {argument}, which torch does not read safely: load it in full if you '
                'trust it, and save it with pickle_protocol=2'
            )
        is_small = isinstance(argument, (int, float)) or opcode.name.startswith(_SMALL_STEPS)
        taken_bytes += _BYTES_OF_NUMBER if is_small else BYTES_OF_STEP
        if taken_bytes > most_bytes:
            raise NotPlain(f'a program that takes more than {most_bytes:,} bytes, which is far larger than the file')
        if 'PUT' in opcode.name:
            memo[argument] = stack[-1]
            continue
        if 'GET' in opcode.name:
            stack.append(memo[argument]._replace(is_repeated=True))
            continue
        taken = _take(stack, opcode) if opcode.stack_before else []
        if 'TUPLE' in opcode.name:
            stack.append(_tuple(taken))
        elif opcode.name == 'GLOBAL':
            stack.append(_Item(name=str(argument)))
        elif opcode.name in ('REDUCE', 'NEWOBJ', 'BUILD'):
            stack.append(_called(opcode.name, *taken))
        elif opcode.name.startswith(('APPEND', 'SETITEM', 'ADDITEMS')):
            stack.append(taken[-1])  # the container
            if opcode.name.startswith('SETITEM'):
                odd_keys += sum(key.is_odd_key for key in taken[-2::-2])
                if odd_keys > _MOST_ODD_KEYS:
                    raise NotPlain(
                        f'more than {_MOST_ODD_KEYS} keys that are neither text nor a number of up to '
                        f'{MOST_BITS_OF_KEY} bits'
                    )
        elif opcode.name == 'MARK':
            stack.append(None)
        elif opcode.name == 'BINPERSID':
            _check_storage(taken[0], is_storage)
            stack.append(_Item())
        else:
            is_long = isinstance(argument, int) and argument.bit_length() > MOST_BITS_OF_KEY
            stack += [_Item(0, 1, '', argument, is_long)] * len(opcode.stack_after)


def _take(stack: list[Any], opcode: pickletools.OpcodeInfo) -> list[_Item]:
    """Takes what an opcode uses from the stack, the last first, down to a mark where it uses one."""
    before = opcode.stack_before
    taken: list[_Item] = []
    if pickletools.markobject in before:
        while (item := stack.pop()) is not None:
            taken.append(item)
        before = before[: before.index(pickletools.markobject)]
    for _ in before:
        taken.append(stack.pop())
    return taken


def _tuple(taken: list[_Item]) -> _Item:
    made = _Item(
        1 + max((item.depth for item in taken), default=0),
        1 + sum(item.items for item in taken),
        value=taken[::-1],
        is_odd_key=True,
    )
    if made.depth > MOST_DEPTH or made.items > _MOST_ITEMS:
        raise NotPlain('tuples that are nested too deep')
    return made


def _called(opcode: str, argument: _Item, called: _Item) -> _Item:
    """Returns what a call makes, or an object with a new state, which is the argument."""
    name = called.name
    # A storage is named as the type of a record, and called for memory as it is. A state is copied, each time.
    if (
        not name
        or name.endswith('Storage')
        or (opcode == 'BUILD' and (name.startswith('torch') or argument.is_repeated))
    ):
        raise NotPlain(f'a program that calls or changes {name or "what is no name"}')
    return _Item(name=name, is_odd_key=name != '_codecs encode')


def _check_storage(item: _Item, is_storage: Callable[[Any, int], bool]) -> None:
    """Raises unless the file has what a persistent identifier names; torch maps what lies behind a record too."""
    _, kind, name, _, count, *_ = item.value
    # What a call makes has a name that is not known here, and a text of other signs may be decoded in two ways.
    if not (isinstance(name.value, str) and name.value.isascii() and name.value.isdigit()):
        raise NotPlain('a tensor whose record is not named by a number')
    kind = kind.name.rpartition(' ')[2]
    size = 1 if kind == 'UntypedStorage' else StorageType(kind).dtype.itemsize
    if not is_storage(name.value, count.value * size):
        raise NotPlain(
            f'a tensor of {count.value} times {size} bytes, which is not the size of its record {name.value!r:.80}'
        )
