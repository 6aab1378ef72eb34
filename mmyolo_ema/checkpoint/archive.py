"""What torch's reader does not look at before it reads a file: sizes, nesting, compression and checksums."""

import os
import pickletools
import zipfile
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

__all__ = ['MOST_DEPTH', 'NotPlain', 'can_be_mapped', 'is_archive', 'most_bytes', 'verify']

#: How deep containers may be in each other.
MOST_DEPTH = 64

# How many items a tuple may hold, with all that is in it. One can be a key, whose hash takes as long as it is large.
_MOST_ITEMS = 10**6

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


@lru_cache(maxsize=256)
def _verified(path: Path, identity: tuple[int, ...]) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
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
                _check_nesting(file)
        return False
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > most_bytes(path):
            raise NotPlain('compressed data that is far larger than the file')
        for entry in entries:
            if entry.filename.endswith('data.pkl'):
                with archive.open(entry) as program:
                    _check_nesting(program)
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


def _check_nesting(program: Any) -> None:
    """Goes through a pickle without doing what it says, and raises if it makes a tuple that is too deep or too large.

    For each item on the pickle's stack there is its depth and the number of items in it.
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
            depth, items = 1 + max((depth for depth, _ in taken), default=0), 1 + sum(items for _, items in taken)
            if depth > MOST_DEPTH or items > _MOST_ITEMS:
                raise NotPlain('tuples that are nested too deep')
            stack.append((depth, items))
        elif opcode.name == 'MARK':
            stack.append(None)
        else:
            stack += [(0, 1)] * len(opcode.stack_after)


def _take(stack: list[Any], opcode: pickletools.OpcodeInfo) -> list[tuple[int, int]]:
    """Takes what an opcode uses from the stack, down to a mark where it uses one."""
    before = opcode.stack_before
    taken: list[tuple[int, int]] = []
    if pickletools.markobject in before:
        while (item := stack.pop()) is not None:
            taken.append(item)
        before = before[:before.index(pickletools.markobject)]
    for _ in before:
        taken.append(stack.pop())
    return taken
