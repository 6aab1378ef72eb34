"""What the processes of a run, on one host or several, have to do alike."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Union

from mmengine.dist import all_gather_object, get_rank, get_world_size


def whereabouts() -> str:
    """Returns the rank and the host of this process, for a message."""
    return f'rank {get_rank()} on host {socket.gethostname()}'


@contextmanager
def raised_by_all() -> Iterator[None]:
    """Makes all processes raise what one of them raises, or ends with; the others would wait for it for ever.

    All of them must come here. Within, they must not wait for each other.

    Raises:
        ValueError: With the message of the first process that raised something, if others raised nothing or something
            else. A process whose error all of them have raises it as it is; so does one that ends by SystemExit.

    Example:
        >>> with raised_by_all():
        ...     'what may go wrong in one process only'
        'what may go wrong in one process only'
    """
    error: Union[Exception, SystemExit, None] = None
    try:
        yield
    except (Exception, SystemExit) as caught:
        error = caught
    told = None if error is None else f'{type(error).__name__}: {error}'
    all_told = all_gather_object((whereabouts(), told)) if get_world_size() > 1 else [('', told)]
    if isinstance(error, SystemExit) or (error is not None and all(other == told for _, other in all_told)):
        raise error
    for where, other in all_told:
        if other is not None:
            raise ValueError(f'{where}: {other}') from error
