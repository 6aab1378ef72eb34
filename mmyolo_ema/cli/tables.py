"""Tables on a terminal, or as Markdown in a file."""

from collections.abc import Sequence
from typing import Any, Optional

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from mmyolo_ema.printing import printable, say


def table_of(texts: Sequence[str], numbers: Sequence[str], title: Optional[str] = None) -> Table:
    """Returns an empty table with columns of texts, and of numbers, which stand at the right."""
    return Table(*texts, *(Column(name, justify='right') for name in numbers), title=title)


def show(table: Table) -> None:
    """Prints a table: with lines on a terminal that is wide enough, otherwise as Markdown of any width."""
    console = _PrintableConsole(markup=False, highlight=False)
    table.title_justify = 'left'
    wide = _PrintableConsole(width=1000, markup=False, highlight=False, color_system=None)
    if console.is_terminal and wide.measure(table).maximum <= console.width:
        console.print(table)
        return
    if table.title:
        say(table.title, '')
        table.title = None
    table.box = box.MARKDOWN
    with wide.capture() as captured:
        wide.print(table)
    say(*'\n'.join(line.rstrip() for line in captured.get().split('\n')).strip('\n').split('\n'))


class _PrintableConsole(Console):
    """Renders cells of tables, which may hold names from a file."""

    def render_str(self, text: str, **kwargs: Any) -> Text:
        return super().render_str(printable(text), **kwargs)
