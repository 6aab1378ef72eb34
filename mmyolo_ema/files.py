"""Writing files so that nothing is lost and nothing is left half written."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Union

from mmengine.fileio import LocalBackend, register_backend


def write_new(path: Path, write: Callable[[Path], object], by_content: bool = False) -> Path:
    """Writes a file that must not be there yet: whole, or not at all.

    Args:
        path: The file. Its folder is made if need be.
        write: Writes to the temporary path that it is given, which has the same suffix and lies in the same folder.
        by_content: Whether the first 8 hex digits of the file's sha256 are put into its name. Defaults to False.

    Returns:
        The file: ``path``, or ``STEM-12345678.SUFFIX``.

    Raises:
        FileExistsError: If there is such a file already, even if it appeared meanwhile. It is left as it is.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_new(Path(folder) / 'new' / 'a.txt', lambda path: path.write_text('whole'))
        ...     path.read_text()
        'whole'
    """
    with _folder(path), tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        _write_and_sync(temporary, write)
        if by_content:
            path = path.with_stem(f'{path.stem}-{_sha256(temporary)[:8]}')
        # A rename replaces what is there, and not every file system has links. So the name is taken first.
        path.touch(exist_ok=False)
        try:
            temporary.replace(path)
        except BaseException:
            path.unlink()
            raise
    return path


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """Makes the folder of a file, and removes it again if nothing is written; an error then names the file."""
    new = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException as error:
        if isinstance(error, OSError) and error.errno and error.filename is None:  # a full disk
            error.filename = str(path)
        with suppress(OSError):  # somebody else uses it
            for folder in new:
                folder.rmdir()
        raise


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file whole, or leaves what was there before. Not for several writers of one file at a time.

    It is written in a hidden folder, in which nobody else can have put anything. What a killed process leaves of that
    is removed by the next attempt.

    Args:
        path: The file. Its folder is made if need be. A link is replaced, not followed.
        write: As for :func:`write_new`.
    """
    folder = path.with_name(f'.unfinished.{path.name}')
    with _folder(path):
        _remove(folder)
        folder.mkdir(mode=0o700)
        try:
            temporary = folder / path.name
            _write_and_sync(temporary, write)
            temporary.replace(path)
        finally:
            _remove(folder)


def _remove(path: Path) -> None:
    """Removes a folder, or a file or link of that name, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_no_links(*paths: Path) -> None:
    """Raises ValueError if a path is a link: others than this module would write to what it leads to."""
    for path in paths:
        if path.is_symlink():
            raise ValueError(f'{path} is a link, and would be written through: remove it, or use another folder')


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lets one process after the other do something with a file, of those that see its folder."""
    # Not through a link, which could make a lock of any file, and empty it.
    flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW
    with open(os.open(path.with_name(f'.{path.name}.lock'), flags, 0o600), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_and_sync(path: Path, write: Callable[[Path], object]) -> None:
    write(path)
    with open(path, 'rb') as file:
        os.fsync(file.fileno())


class WholeFilesBackend(LocalBackend):
    """MMEngine's access to local files, with each file written whole or not at all."""

    def put(self, obj: bytes, filepath: Union[str, Path]) -> None:
        replace(Path(filepath), lambda path: path.write_bytes(obj))

    def put_text(self, obj: str, filepath: Union[str, Path], encoding: str = 'utf-8') -> None:
        replace(Path(filepath), lambda path: path.write_text(obj, encoding))


def use_whole_files() -> None:
    """Makes MMEngine, in this process, write local files such as checkpoints whole or not at all."""
    register_backend('local', WholeFilesBackend, force=True, prefixes='')
