"""Tables as Markdown, CSV and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
import textwrap
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
    value: str | None = None
    """name of the raw value that ranks the rows; None: no cell is marked as best"""
    bigger_is_better: bool = True


@dataclass(frozen=True)
class Table:
    """A table, apart from the format that it is written in."""

    stem: str
    """names files and labels"""
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def cells(self) -> list[list[str]]:
        """The titles, then one list per row."""
        head = [column.title for column in self.columns]
        return [head, *([column.text(row) for column in self.columns] for row in self.rows)]

    def best(self) -> set[tuple[int, int]]:
        """(row, column) of the best cells. Ties are all best; a column of equal cells has no best."""
        return {(row, at) for at, column in enumerate(self.columns) for row in self._best_rows(column)}

    def _best_rows(self, column: Column) -> list[int]:
        if (name := column.value) is None:
            return []
        known = [at for at, row in enumerate(self.rows) if _is_finite(row[name])]
        texts = {at: column.text(self.rows[at]).split(" ±")[0] for at in known}
        if len(set(texts.values())) < 2:
            return []
        choose = max if column.bigger_is_better else min
        best = texts[choose(known, key=lambda at: float(self.rows[at][name]))]
        return [at for at in known if texts[at] == best]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def markdown(table: Table, width: int | None = None) -> str:
    """Format as Markdown. width: characters in a terminal line; None: no limit."""
    rows = _marked(table, escaped, lambda cell: f"**{cell}**")
    return f"## {escaped(table.title)}\n\n{fitted(rows, width)}\n" + listed_notes(table.notes, width)


def listed_notes(notes: Sequence[str], width: int | None = None) -> str:
    """A Markdown list after an empty line; '' without notes."""
    lines = [f"- {escaped_line(note)}" for note in notes]
    if width:
        lines = [textwrap.fill(line, max(width, 20), subsequent_indent="  ", break_on_hyphens=False) for line in lines]
    return "".join(f"{line}\n" for line in ["", *lines]) if lines else ""


def as_csv(table: Table) -> str:
    """Format as CSV with plain units and all digits; an unknown value is empty."""
    out = io.StringIO()
    names = list(table.rows[0]) if table.rows else []
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([spreadsheet_cell(row[name]) for name in names] for row in table.rows)
    return out.getvalue()


def spreadsheet_cell(value: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would run as a formula; numbers stay numbers."""
    if isinstance(value, str) and value.startswith(_FORMULA) and not _NUMBER.fullmatch(value):
        return f"'{value}"
    return value


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def _marked(table: Table, written: Callable[[str], str], bold: Callable[[str], str]) -> list[list[str]]:
    """Titles, then rows, with the best cells in bold."""
    head, *rows = [[written(cell) for cell in row] for row in table.cells()]
    best = table.best()
    return [head] + [
        [bold(cell) if (row, at) in best else cell for at, cell in enumerate(cells)] for row, cells in enumerate(rows)
    ]


def latex(table: Table) -> str:
    """A table for a paper, with the packages that it needs and its notes in comments above it."""
    head, *rows = _marked(table, _tex, lambda cell: rf"\textbf{{{cell}}}")
    lines = [" & ".join(row) + r" \\" for row in rows]
    best = " Best in bold." if table.best() else ""
    return "\n".join(
        [
            r"% Needs \usepackage{booktabs} in the preamble. A wide table fits two columns as table*.",
            *(f"% {escaped_line(note)}" for note in table.notes),
            r"\begin{table}",
            r"\centering",
            r"\small",
            rf"\caption{{{_tex(table.title)}.{best}}}",
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
    """Escape text for a cell of a Markdown table."""
    return escaped_line(text).replace("|", "\\|")


def escaped_line(text: str) -> str:
    """The text as one line."""
    return " ".join(text.splitlines())


def fitted(rows: Sequence[Sequence[str]], width: int | None, num_left: int = 1) -> str:
    """Format a Markdown table, or a list of values per row where the table is wider than the terminal."""
    text = aligned(rows, num_left)
    if width is None or text.index("\n") <= width:
        return text
    head, *others = rows
    blocks = ["\n".join([row[0], *_values(head, row)]) for row in others]
    return "\n".join(blocks)


def _values(head: Sequence[str], row: Sequence[str]) -> list[str]:
    return [f"  {name}: {cell}" for name, cell in zip(head[1:], row[1:], strict=True) if cell not in ("", NONE)]


def aligned(rows: Sequence[Sequence[str]], num_left: int = 1) -> str:
    """Format a Markdown table with aligned columns: the first num_left to the left, others to the right."""
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
