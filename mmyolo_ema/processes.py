"""What the processes of a run, on one host or several, have to do alike."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Union

from mmengine.dist import all_gather_object, get_rank, get_world_size

# The exit status of a command that refuses its input. One that a signal ends must not wait for others.
_REFUSED = 2


def whereabouts() -> str:
    """Returns the rank and the host of this process, for a message."""
    return f'rank {get_rank()} on host {socket.gethostname()}'


@contextmanager
def raised_by_all() -> Iterator[None]:
    """Makes all processes raise what one of them raises; the others would wait for it for ever.

    All of them must come here. Within, they must not wait for each other.

    Raises:
        ValueError: With the message of the first process that raised something, if others raised nothing or something
            else. A process whose error all of them have raises it as it is; so does one that ends with exit status 2.
        RuntimeError: The same, if that was none of AssertionError, OSError, TypeError and ValueError.

    Example:
        >>> with raised_by_all():
        ...     'what may go wrong in one process only'
        'what may go wrong in one process only'
    """
    error: Union[Exception, SystemExit, None] = None
    try:
        yield
    except (Exception, SystemExit) as caught:
        if isinstance(caught, SystemExit) and caught.code != _REFUSED:
            raise
        error = caught
    # What the user did is told from a bug by its class.
    kind = (
        ValueError if isinstance(error, (AssertionError, OSError, SystemExit, TypeError, ValueError)) else RuntimeError
    )
    told = None if error is None else (kind, f'{type(error).__name__}: {error}')
    all_told = all_gather_object((whereabouts(), told)) if get_world_size() > 1 else [('', told)]
    if isinstance(error, SystemExit) or (error is not None and all(other == told for _, other in all_told)):
        raise error
    for where, other in all_told:
        if other is not None:
            kind, message = other
            raise kind(f'{where}: {message}') from error
