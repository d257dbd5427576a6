"""Create rich consoles that print user text literally and fit tables to the terminal.

Names, paths and notes may contain `[brackets]`, `:smile:` or control characters. They are never read as markup.
"""

from __future__ import annotations

import shutil
import sys
from typing import IO, Any, cast

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from fibec_ray.cli.streams import harmless
from fibec_ray.environment import read

LEAST_TEXT = 9
"""Narrowest text column, in characters; a table that needs narrower ones is printed as a list."""
PIPE_WIDTH = 10_000
"""Width of a pipe, in characters: rows are not folded, so that grep works."""


class _Plain(Console):
    def render_str(self, text: str, *arguments: Any, **options: Any) -> Text:
        return super().render_str(harmless(text), *arguments, **options)


def make_console() -> Console:
    """Return a console on stdout. Text is never markup; styles are given explicitly."""
    out = getattr(sys.stdout, "styled", sys.stdout)
    return _Plain(file=cast("IO[str]", out), markup=False, emoji=False, highlight=False)


def screen_width() -> int | None:
    """Characters per line of the terminal; None if stdout is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def print_table(console: Console, table: Table, fold_in_pipes: bool = True) -> None:
    """Print a table. Columns with no_wrap hold numbers and are never cut; if they do not fit, each row becomes a list.

    fold_in_pipes: whether to use COLUMNS as the width if stdout is not a terminal.
    """
    if not console.is_terminal and not (fold_in_pipes and read("COLUMNS")):
        console.width = PIPE_WIDTH
    if least_width(table) <= console.width:
        console.print(table)
        return
    if table.title:
        console.print(table.title, style="bold")
    names = [str(column.header) for column in table.columns]
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        first, *rest = map(str, cells)
        console.print(first, style="bold", overflow="fold")
        for name, cell in zip(names[1:], rest, strict=True):
            if cell:
                value = console.render_str(f"{name}: {cell}" if name else cell, overflow="fold")
                console.print(Padding(value, (0, 0, 0, 2)))


def least_width(table: Table) -> int:
    """Characters that a table needs to cut no number and keep text columns at least LEAST_TEXT wide."""
    borders = 0 if table.box is None else len(table.columns) + 1
    return borders + sum(_least(column) + 2 for column in table.columns)


def _least(column: Column) -> int:
    widest = max(cell_len(line) for text in (column.header, *column.cells) for line in str(text).split("\n"))
    return widest if column.no_wrap else min(widest, LEAST_TEXT)
