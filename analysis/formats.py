"""Tables as Markdown, CSV and LaTeX; written by sweep_table.py and compare.py, shown by report pages and `runs`."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NONE = "–"
Row = Mapping[str, Any]
"""Raw values by the names of CSV columns."""


@dataclass(frozen=True)
class Column:
    """One shown column, made from a row's raw values."""

    title: str
    text: Callable[[Row], str]


@dataclass(frozen=True)
class Table:
    stem: str
    """names files and labels"""
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def cells(self) -> list[list[str]]:
        """Titles first."""
        head = [column.title for column in self.columns]
        return [head, *([column.text(row) for column in self.columns] for row in self.rows)]


def markdown(table: Table) -> str:
    rows = [[escaped(cell) for cell in row] for row in table.cells()]
    notes = "".join(f"- {note}\n" for note in table.notes)
    return f"## {escaped(table.title)}\n\n{aligned(rows)}\n" + (f"\n{notes}" if notes else "")


def as_csv(table: Table) -> str:
    """Plain units and all digits; empty where unknown."""
    out = io.StringIO()
    names = list(table.rows[0]) if table.rows else []
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.rows)
    return out.getvalue()


def latex(table: Table) -> str:
    """A table for a paper; needs the package booktabs."""
    head, *rows = [[_tex(cell) for cell in row] for row in table.cells()]
    lines = [" & ".join(row) + r" \\" for row in rows]
    notes = " ".join(_tex(note) for note in table.notes)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_tex(table.title)}. {notes}}}",
            rf"\label{{tab:{table.stem}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            " & ".join(head) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def escaped(text: str) -> str:
    """A bar would end the cell of a Markdown table."""
    return text.replace("|", "\\|")


def aligned(rows: Sequence[Sequence[str]], num_left: int = 1) -> str:
    """A Markdown table that is also one in a terminal: the first num_left columns to the left, numbers to the right."""
    widths = [max(3, *(len(row[at]) for row in rows)) for at in range(len(rows[0]))]
    ruler = ["-" * width if at < num_left else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    return "\n".join("| " + " | ".join(_padded(row, widths, num_left)) + " |" for row in (rows[0], ruler, *rows[1:]))


def _padded(row: Sequence[str], widths: Sequence[int], num_left: int) -> list[str]:
    cells = enumerate(zip(row, widths, strict=True))
    return [text.ljust(width) if at < num_left else text.rjust(width) for at, (text, width) in cells]


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$",
    "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "≥": r"$\geq$", "–": "--",
}  # fmt: skip


def _tex(text: str) -> str:
    signed = re.sub(r"(?<!\w)-(?=\d)", "−", text)  # a minus, not a hyphen
    return "".join(_TEX.get(letter, letter) for letter in signed)
