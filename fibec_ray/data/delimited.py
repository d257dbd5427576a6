"""Reads CSV and TSV files as Arrow tables of strings.

Rows of any length are read: pyarrow reads blocks, and a row must fit into one, so that long rows are tried again with
larger blocks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from fibec_ray.data.columns import Choice, chosen

BLOCKS = (1 << 20, 1 << 24, 1 << 28, (1 << 31) - 1)
"""bytes; the last is the largest that pyarrow takes"""
_TOO_SMALL = ("straddling object", "Empty CSV file or block")


def read_delimited(path: Path, choose: Choice, delimiter: str, quoted: bool) -> Any:
    """The chosen columns, all as strings. quoted: a field in quotes may hold delimiters and line ends.

    Raises ArrowException, DataError or ValueError for what cannot be read.
    """
    invalid: list[Any] = []

    def refuse(row: Any) -> str:
        invalid.append(row)
        return "error"

    quotes: dict[str, Any] = {"newlines_in_values": True} if quoted else {"quote_char": False}
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, invalid_row_handler=refuse, **quotes)
    size = path.stat().st_size
    for block, larger in zip(BLOCKS, (*BLOCKS[1:], None), strict=True):
        try:
            return _read(path, choose, parse, pyarrow.csv.ReadOptions(block_size=block))
        except pa.ArrowInvalid as error:
            if invalid:
                raise ValueError(_misfit(path, invalid)) from error
            if not any(sign in str(error) for sign in _TOO_SMALL):
                raise
            if block > size:
                raise ValueError("it has no rows") from error
            if larger is None:
                raise ValueError(f"a row of more than {block >> 20} MB; is a quote not closed?") from error
    raise AssertionError("the last block is too small, or not")


def _read(path: Path, choose: Choice, parse: Any, read: Any) -> Any:
    with pyarrow.csv.open_csv(path, parse_options=parse, read_options=read) as reader:
        columns = chosen(choose, list(reader.schema.names), str(path))
    # All as strings: type inference would turn the text "2004" into a number and the label "True" into a flag.
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns), strings_can_be_null=False
    )
    return pyarrow.csv.read_csv(path, parse_options=parse, convert_options=convert, read_options=read)


def _misfit(path: Path, rows: list[Any]) -> str:
    """pyarrow's threads do not know line numbers: the first line of a row that does not fit is searched for."""
    starts = {(row.text.splitlines() or [""])[0]: row for row in rows}
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        numbered = ((number, starts.get(line.rstrip("\n"))) for number, line in enumerate(lines, start=1))
        number, row = next(((number, row) for number, row in numbered if row is not None), (None, rows[0]))
    where = "a row" if number is None else f"line {number}"
    fields = "1 field" if row.actual_columns == 1 else f"{row.actual_columns} fields"
    open_quote = "; is a quote not closed?" if row.text.count('"') % 2 else ""
    return f"{where} has {fields} where {row.expected_columns} are expected{open_quote}"
