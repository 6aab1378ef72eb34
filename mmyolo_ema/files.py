"""Writing files so that nothing is lost and nothing is left half written."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

__all__ = ['write_new']


def write_new(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file that must not be there yet: whole, or not at all.

    Args:
        path: The file. Its folder is made if need be.
        write: Writes to the temporary path that it is given, which has the same suffix and lies in the same folder.

    Raises:
        FileExistsError: If there is such a file already, even if it appeared meanwhile. It is left as it is.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_new(Path(folder) / 'new' / 'a.txt', lambda path: path.write_text('whole'))
        ...     (Path(folder) / 'new' / 'a.txt').read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        write(temporary)
        with open(temporary, 'rb') as file:
            os.fsync(file.fileno())
        # Unlike a rename, a link never replaces what is there.
        os.link(temporary, path)
