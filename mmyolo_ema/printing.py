"""Showing text that came from a file, which may hold what a terminal would obey: names, keys, options, paths."""

__all__ = ['printable', 'say']


def printable(text: object) -> str:
    r"""Returns a text in one line, with escapes for what is not printable.

    Example:
        >>> printable('a\x1b[2J\nequal')
        'a\\x1b[2J\\nequal'
    """
    return ''.join(sign if sign.isprintable() else sign.encode('unicode_escape').decode() for sign in str(text))


def say(*lines: object) -> None:
    """Prints lines; what would begin a new one within a line is shown as an escape."""
    for line in lines:
        print(printable(line))
