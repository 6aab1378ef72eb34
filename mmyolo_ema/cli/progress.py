"""How far long work is, and the time left."""

import sys
from collections.abc import Callable
from typing import Any, TextIO

from tqdm import tqdm

# Seconds between two lines in a file or a pipe.
_PAUSE = 30


class Bar(tqdm):
    """A bar on a terminal; elsewhere a line every half minute, so that a log says it too."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        shown = (
            dict(leave=False, dynamic_ncols=True)
            if sys.stderr.isatty()
            else dict(mininterval=_PAUSE, maxinterval=_PAUSE, delay=_PAUSE)
        )
        super().__init__(*args, **shown, **kwargs)

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], Any]:
        """Returns the function that shows a state of the bar."""
        if file.isatty():
            return tqdm.status_printer(file)
        return lambda text: file.write(text.strip() + '\n' if text.strip() else '')
