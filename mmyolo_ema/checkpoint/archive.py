"""What torch's reader does not look at before it reads a file: sizes, compression, directories and checksums."""

import os
import pickletools
import re
import struct
import zipfile
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from mmyolo_ema.checkpoint.program import BYTES_OF_STEP, NotPlain, check_program

# The records at the end of an archive: of the format before and after files of 4 GB, and what points to the latter.
_END, _LOCATOR, _END_64 = struct.Struct('<4s4H2IH'), struct.Struct('<4sIQI'), struct.Struct('<4sQ2H2I4Q')

_LONGEST_COMMENT = 2**16 - 1

# Before torch 1.6 a file was five pickles one after the other; the last is a list of names.
_OLDER_PICKLES = 4
_NAME = '( (BINUNICODE|SHORT_BINSTRING)( (LONG_)?BINPUT)?)'
_LIST_OF_NAMES = re.compile(f'PROTO EMPTY_LIST( BINPUT)?({_NAME} APPEND| MARK{_NAME}+ APPENDS)* STOP')


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
        must_have_checksums: Whether a file of torch before 1.6 is refused, which has none. Defaults to True.

    Raises:
        ValueError: If a checksum is wrong, or lacking.
    """
    path = Path(path)
    if path.suffix == '.safetensors':
        return
    if is_archive(path):
        _verified(path, _identity(path))
    elif must_have_checksums:
        raise ValueError(
            f'{path} has no checksums, since it was written in the format before torch 1.6: load it and save it again'
        )


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
    most = most_bytes(path)
    if not is_archive(path):
        _check_older(path, most)
        return False
    with zipfile.ZipFile(path) as archive:
        _check_one_directory(path, archive)
        entries = archive.infolist()
        # torch finds an entry whatever its case, and in the folder of the first one.
        sizes = {entry.orig_filename.lower(): entry.file_size for entry in entries}
        programs = [entry for entry in entries if entry.orig_filename.lower().endswith('data.pkl')]
        is_stored = [entry.compress_type == zipfile.ZIP_STORED for entry in entries]
        if len(sizes) < len(entries):
            raise zipfile.BadZipFile('the archive has two entries of one name')
        if any(entry.file_size != entry.compress_size for entry, stored in zip(entries, is_stored) if stored):
            raise zipfile.BadZipFile('the archive has an entry of two sizes')
        if sum(sizes.values()) > most:
            raise NotPlain('compressed data that is far larger than the file')
        if len(programs) != 1:
            raise zipfile.BadZipFile(f'the archive has {len(programs)} pickles')
        folder = entries[0].orig_filename.split('/')[0]
        with archive.open(programs[0]) as program:
            check_program(program, most, lambda name, count: sizes.get(f'{folder}/data/{name}'.lower()) == count)
        return all(is_stored)


def _check_older(path: Path, most: int) -> None:
    """Goes through a file of torch before 1.6: some pickles, the names of the storages in one more, their numbers."""
    sizes: dict[Any, int] = {}
    size = path.stat().st_size

    def is_storage(name: Any, count: int) -> bool:
        return sizes.setdefault(name, count) <= size

    with path.open('rb') as file:
        for _ in range(_OLDER_PICKLES):
            check_program(file, most, is_storage)
        steps = list(islice(pickletools.genops(file), most // BYTES_OF_STEP))
    program, names = ' '.join(opcode.name for opcode, _, _ in steps), {argument for _, argument, _ in steps}
    # torch leaves what was in the memory in the place of numbers that are not listed.
    if not (_LIST_OF_NAMES.fullmatch(program) and sizes.keys() <= names):
        raise NotPlain('a list of tensors that is not complete')


def _check_one_directory(path: Path, archive: zipfile.ZipFile) -> None:
    """Raises BadZipFile unless the directory that zipfile read is the one that torch reads.

    zipfile takes the one that ends where the record of the end begins, torch the one that this record points to.
    """
    with path.open('rb') as file:
        file.seek(-min(path.stat().st_size, _LOCATOR.size + _END.size + _LONGEST_COMMENT), os.SEEK_END)
        tail = file.read()
        # The last one that is whole, as torch looks for it; a comment may follow.
        start = tail.rfind(b'PK\5\6', 0, len(tail) - _END.size + 4)
        *_, offset, comment = _END.unpack_from(tail, start) if start >= 0 else (0, -1)
        if start + _END.size + comment != len(tail):
            raise zipfile.BadZipFile('the archive does not end with its directory')
        locator = tail[max(start - _LOCATOR.size, 0) : start]
        if locator.startswith(b'PK\6\7'):
            file.seek(_LOCATOR.unpack(locator)[2])
            mark, *_, offset_64 = _END_64.unpack(file.read(_END_64.size))
            if mark != b'PK\6\6' or offset not in (offset_64, 2**32 - 1):  # without the mark torch takes the other
                raise zipfile.BadZipFile('the archive has two directories')
            offset = offset_64
    if offset != archive.start_dir:
        raise zipfile.BadZipFile('the archive has two directories')
