"""Tables for people: drawn to fit a terminal; in a pipe plain lines, not folded, not coloured."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence

GAP = "  "


def show_list(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table with a heading over each column."""
    if sys.stdout.isatty():
        _draw(title, columns, rows)
    else:
        _print(title, [columns, *rows])


def show_facts(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Names on the left and what there is to say on the right."""
    if sys.stdout.isatty():
        _draw(title, None, rows)
    else:
        _print(title, list(rows))


def size(count: int) -> str:
    """Bytes in a unit that suits them.

    >>> size(512), size(3 << 20), size(5 << 29)
    ('512 bytes', '3.00 MiB', '2.50 GiB')
    """
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >> shift:
            return f"{count / (1 << shift):,.2f} {unit}"
    return f"{count} bytes"


def _print(title: str, rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(title)
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print((GAP + GAP.join(cells)).rstrip())
    print()


def _draw(title: str, columns: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=Text(title, style="bold"),
        title_justify="left",
        box=box.SIMPLE,
        show_header=columns is not None,
    )
    for name in columns or ():
        table.add_column(name, overflow="fold")
    for row in rows:
        name, *others = row
        table.add_row(Text(name, style="bold"), *map(Text, others))
    Console().print(table)
