"""What torch's reader does not look at before it reads a file: sizes, nesting, compression and checksums."""

import os
import pickletools
import struct
import zipfile
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

__all__ = ['MOST_DEPTH', 'NotPlain', 'can_be_mapped', 'is_archive', 'most_bytes', 'verify']

#: How deep containers may be in each other.
MOST_DEPTH = 64

# How many items a tuple may hold, with all that is in it. One can be a key, whose hash takes as long as it is large.
_MOST_ITEMS = 10**4

# The records at the end of an archive: of the format before and after files of 4 GB, and what points to the latter.
_END, _LOCATOR, _END_64 = struct.Struct('<4s4H2IH'), struct.Struct('<4sIQI'), struct.Struct('<4sQ2H2I4Q')

# Before torch 1.6 a file was five pickles one after the other.
_LEGACY_PICKLES = 5


class NotPlain(UnpicklingError):
    """What a checkpoint may not hold, in words that follow 'it holds'."""


def most_bytes(path: Path) -> int:
    """Returns what a file may take in memory, in bytes: far more than what torch writes, far less than a bomb."""
    return 2**26 + 20 * path.stat().st_size


def is_archive(path: Path) -> bool:
    """Whether torch reads a file as a zip archive: it goes by the first bytes."""
    with path.open('rb') as file:
        return file.read(4) == b'PK\3\4'


def can_be_mapped(path: Path) -> bool:
    """Whether a file holds its tensors as they are in memory.

    torch maps compressed bytes as if they were numbers.

    Raises:
        zipfile.BadZipFile, OSError: If the archive is damaged.
        NotPlain: If reading it would take far more memory than its size, or its pickle is nested too deep.
    """
    return _inspected(path, _identity(path))


def verify(path: Path, must_have_checksums: bool = True) -> None:
    """Raises unless a file's bytes are those that were written.

    Args:
        path: A file of ``torch.save``, or a ``.safetensors`` file, which has no checksums.
        must_have_checksums: Whether a file of torch before 1.6 is refused, which has none, and may leave out weights
            in whose place torch leaves what was in the memory. Defaults to True.

    Raises:
        ValueError: If a checksum is wrong, or lacking.
    """
    path = Path(path)
    if path.suffix == '.safetensors':
        return
    if is_archive(path):
        _verified(path, _identity(path))
    elif must_have_checksums:
        raise ValueError(f'{path} has no checksums, since it was written in the format before torch 1.6: load it and '
                         'save it again')


def _identity(path: Path) -> tuple[int, ...]:
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


# By what a file is now, so that another one of its name is looked at anew.
@lru_cache(maxsize=256)
def _verified(path: Path, identity: tuple[int, ...]) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            _check_one_directory(path, archive)
            damaged = archive.testzip()
    except Exception as error:  # the reader of archives raises what it comes across
        raise ValueError(f'{path} is damaged ({type(error).__name__}: {error!s:.80})') from error
    if damaged is not None:
        raise ValueError(f'{path} is damaged: the checksum of {damaged} is wrong')


@lru_cache(maxsize=256)
def _inspected(path: Path, identity: tuple[int, ...]) -> bool:
    if not is_archive(path):
        with path.open('rb') as file:
            for _ in range(_LEGACY_PICKLES):
                _check_program(file)
        return False
    with zipfile.ZipFile(path) as archive:
        _check_one_directory(path, archive)
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > most_bytes(path):
            raise NotPlain('compressed data that is far larger than the file')
        for entry in entries:
            if entry.filename.lower().endswith('data.pkl'):  # torch finds it whatever its case
                with archive.open(entry) as program:
                    _check_program(program)
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


def _check_one_directory(path: Path, archive: zipfile.ZipFile) -> None:
    """Raises BadZipFile unless the directory that zipfile read is the one that torch reads.

    zipfile takes the one that ends where the record of the end begins, torch the one that this record points to.
    """
    with path.open('rb') as file:
        file.seek(-min(path.stat().st_size, _END.size + _LOCATOR.size), os.SEEK_END)
        locator, end = file.read(_LOCATOR.size), file.read()
        if len(end) != _END.size or not end.startswith(b'PK\5\6'):
            raise zipfile.BadZipFile('the archive does not end with its directory')
        offset = _END.unpack(end)[6]
        if locator.startswith(b'PK\6\7'):
            file.seek(_LOCATOR.unpack(locator)[2])
            offset_64 = _END_64.unpack(file.read(_END_64.size))[9]
            if offset not in (offset_64, 2**32 - 1):
                raise zipfile.BadZipFile('the archive has two directories')
            offset = offset_64
    if offset != archive.start_dir:
        raise zipfile.BadZipFile('the archive has two directories')


class _Item(NamedTuple):
    """What is known of an item on the stack of a pickle."""

    depth: int = 0
    items: int = 1
    #: The name that it is or was made by, if a name made it.
    name: str = ''


def _check_program(program: Any) -> None:
    """Goes through a pickle without doing what it says, and raises if it does what no checkpoint needs.

    That is a tuple that is too deep or too large, a call of what is no name, and a new state for a tensor, which takes
    what is in the memory.
    """
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for opcode, argument, _ in pickletools.genops(program):
        if 'PUT' in opcode.name:
            memo[argument] = stack[-1]
            continue
        if 'GET' in opcode.name:
            stack.append(memo[argument])
            continue
        taken = _take(stack, opcode)
        if 'TUPLE' in opcode.name:
            item = _Item(1 + max((item.depth for item in taken), default=0), 1 + sum(item.items for item in taken))
            if item.depth > MOST_DEPTH or item.items > _MOST_ITEMS:
                raise NotPlain('tuples that are nested too deep')
            stack.append(item)
        elif opcode.name == 'GLOBAL':
            stack.append(_Item(name=str(argument)))
        elif opcode.name in ('REDUCE', 'NEWOBJ', 'BUILD'):
            called = taken[-1].name
            # A storage is named as the type of a record, and called for memory as it is.
            if not called or called.endswith('Storage') or (opcode.name == 'BUILD' and called.startswith('torch')):
                raise NotPlain(f'a program that calls or changes {called or "what is no name"}')
            stack.append(_Item(name=called))
        elif opcode.name.startswith(('APPEND', 'SETITEM', 'ADDITEMS')):
            stack.append(taken[-1])  # the container
        elif opcode.name == 'MARK':
            stack.append(None)
        else:
            stack += [_Item()] * len(opcode.stack_after)


def _take(stack: list[Any], opcode: pickletools.OpcodeInfo) -> list[_Item]:
    """Takes what an opcode uses from the stack, down to a mark where it uses one."""
    before = opcode.stack_before
    taken: list[_Item] = []
    if pickletools.markobject in before:
        while (item := stack.pop()) is not None:
            taken.append(item)
        before = before[:before.index(pickletools.markobject)]
    for _ in before:
        taken.append(stack.pop())
    return taken
