"""Showing text that came from a file, which may hold what a terminal would obey: names, keys, options, paths."""

import logging
from contextlib import suppress
from typing import Any


def printable(text: object) -> str:
    r"""Returns a text in one line, with escapes for what is not printable.

    Example:
        >>> printable('a\x1b[2J\nequal')
        'a\\x1b[2J\\nequal'
    """
    return ''.join(sign if sign.isprintable() else sign.encode('unicode_escape').decode() for sign in str(text))


def escape_log() -> None:
    """Makes all loggers of this process write escapes too; lines and tabs stay."""
    make = logging.getLogRecordFactory()

    def make_printable(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make(*args, **kwargs)
        with suppress(TypeError, ValueError):  # arguments of other kinds than the message asks for
            lines = record.getMessage().split('\n')
            record.msg = '\n'.join('\t'.join(map(printable, line.split('\t'))) for line in lines)
            record.args = ()
        return record

    logging.setLogRecordFactory(make_printable)


def say(*lines: object) -> None:
    """Prints lines; what would begin a new one within a line is shown as an escape."""
    for line in lines:
        print(printable(line))
