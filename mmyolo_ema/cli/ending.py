"""How a command ends: in one line and an exit status, without a traceback for what the user did."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Optional, Union

from mmyolo_ema.printing import escape_log, printable


class Stopped(SystemExit):
    """The end of a program that has said why, with exit status 2."""

    def __init__(self, line: str) -> None:
        super().__init__(2)
        self.line = line

    def __str__(self) -> str:
        return self.line


def stop(message: Union[str, Exception], *files: Path) -> NoReturn:
    """Ends the program with one line on standard error and exit status 2."""
    raise Stopped(report_error(message, *files))


def report_error(message: Union[str, Exception], *files: Path) -> str:
    """Prints one line on standard error, with the names of the files that it is about if it has none of them."""
    line = ' '.join(str(message).split())
    if files and not any(str(file) in line for file in files):
        line = f'{" or ".join(map(str, files))}: {line}'
    print('error: ' + printable(line), file=sys.stderr)
    return line


def run(main: Callable[[], Optional[int]]) -> NoReturn:
    """Runs a tool to its end, which is no traceback if the user stops it or closes what it writes to."""
    # So that temporary files are removed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    escape_log()
    # A worker of a process pool would not die of that, and the pool would wait for it for ever.
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    try:
        status = main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        # What is left in the buffer would be written, and fail, when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            sys.exit(0)
        if error.errno is None:  # told again by torch, for a worker process, with the traceback as its text
            raise
        stop(error)
    sys.exit(status)
