"""Reads CSV and TSV files as Arrow tables of strings.

Rows may have any length. pyarrow reads in blocks and a row must fit into one, so files with long rows are tried again
with larger blocks.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv

from fibec_ray.data.columns import Choice, chosen
from fibec_ray.data.layout import Layout, delimiter_of, encoding_of, open_bytes, text_source

BLOCKS = (1 << 20, 1 << 24, 1 << 28, (1 << 31) - 1)
"""bytes; the last is the largest that pyarrow takes"""
_TOO_SMALL = ("straddling object", "Empty CSV file or block")


def read_delimited(path: Path, choose: Choice, layout: Layout, natural: str) -> Any:
    """The chosen columns, all as strings.

    natural: the delimiter that the file's suffix stands for. Only tab-separated TSV files have no quoting.
    Raises ArrowException, DataError or ValueError for files that cannot be read.
    """
    invalid: list[Any] = []

    def refuse(row: Any) -> str:
        invalid.append(row)
        return "error"

    codec = encoding_of(path, layout.encoding)
    delimiter = delimiter_of(path, codec, layout.delimiter, natural)
    quoted = not natural == delimiter == "\t"
    quotes: dict[str, Any] = {"newlines_in_values": True} if quoted else {"quote_char": False}
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, invalid_row_handler=refuse, **quotes)
    source, size = text_source(path, codec)
    for block, larger in zip(BLOCKS, (*BLOCKS[1:], None), strict=True):
        options = pyarrow.csv.ReadOptions(block_size=block, autogenerate_column_names=not layout.header)
        try:
            return _read(source, str(path), choose, parse, options)
        except pa.ArrowInvalid as error:
            if invalid:
                raise ValueError(_misfit(path, codec, delimiter, invalid)) from error
            if not any(sign in str(error) for sign in _TOO_SMALL):
                raise
            if block > size:
                raise ValueError("it has no rows") from error
            if larger is None:
                raise ValueError(f"a row of more than {block >> 20} MB; is a quote not closed?") from error
    raise AssertionError("the last block is too small, or not")


def _read(source: Callable[[], Any], where: str, choose: Choice, parse: Any, read: Any) -> Any:
    with pyarrow.csv.open_csv(source(), parse_options=parse, read_options=read) as reader:
        columns = chosen(choose, list(reader.schema.names), where)
    # All as strings: type inference would turn the text "2004" into a number and the label "True" into a flag.
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pa.string()), include_columns=list(columns), strings_can_be_null=False
    )
    return pyarrow.csv.read_csv(source(), parse_options=parse, convert_options=convert, read_options=read)


def _misfit(path: Path, codec: str, delimiter: str, rows: list[Any]) -> str:
    """Which line does not fit. pyarrow's threads do not know line numbers, so the first line of the row is searched."""
    starts = {(row.text.splitlines() or [""])[0]: row for row in rows}
    with open_bytes(path) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8-sig" if codec == "utf-8" else codec, errors="replace")
        numbered = ((number, starts.get(line.rstrip("\n"))) for number, line in enumerate(lines, start=1))
        number, row = next(((number, row) for number, row in numbered if row is not None), (None, rows[0]))
    where = "a row" if number is None else f"line {number}"
    fields = "1 field" if row.actual_columns == 1 else f"{row.actual_columns} fields"
    advice = ""
    if row.text.count('"') % 2:
        advice = "; is a quote not closed?"
    elif row.actual_columns > row.expected_columns:
        advice = f"; put texts with {delimiter!r} in them in quotes"
    return f"{where} has {fields} where {row.expected_columns} are expected{advice}"
