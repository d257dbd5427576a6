"""Reads local files as Arrow tables: Parquet, CSV, TSV, JSON. Every failure is one DataError line.

A TSV is read as GLUE writes it: no quoting, so a `"` is a character like any other. A CSV is quoted as usual. JSON has
a line for each row; in a file called .json it may be one array of them.
"""

from __future__ import annotations

import json
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet

from fibec_ray.data.columns import Choice, chosen, require_columns, twice
from fibec_ray.data.delimited import read_delimited
from fibec_ray.errors import DataError

Format = Literal["auto", "parquet", "csv", "tsv", "jsonl"]

SUFFIXES: dict[str, tuple[str, ...]] = {
    "parquet": (".parquet",),
    "csv": (".csv",),
    "tsv": (".tsv",),
    "jsonl": (".jsonl", ".json"),
}


def format_of(path: Path, format_: Format) -> str:
    """The format as set, or as the suffix says."""
    if format_ != "auto":
        return format_
    for name, suffixes in SUFFIXES.items():
        if path.suffix.lower() in suffixes:
            return name
    known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
    raise DataError(f"{path}: the suffix {path.suffix!r} says no format; allowed: {known}; or set data.format")


def read_table(path: Path, format_: Format, columns: tuple[str, ...] | Choice) -> Any:
    """These columns as a pyarrow.Table. CSV and TSV give strings only; the caller knows what they mean."""
    kind = format_of(path, format_)
    if not path.is_file():
        raise DataError(
            f"{path}: {'is not a file' if path.exists() else 'no such file'}; set data.path, data.train or data.test"
        )
    try:
        if kind != "parquet":
            _refuse_utf16(path)
        return READERS[kind](path, columns if callable(columns) else partial(require_columns, str(path), columns))
    except (pa.ArrowException, OSError, ValueError, OverflowError, RecursionError) as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path}: cannot be read as {kind} ({first_line}); replace the file or set data.format"
        ) from error


def _refuse_utf16(path: Path) -> None:
    """What Excel calls Unicode text."""
    with path.open("rb") as file:
        if file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE):
            raise ValueError("it is UTF-16; save it as UTF-8")


def _read_parquet(path: Path, choose: Choice) -> Any:
    file = pyarrow.parquet.ParquetFile(path)
    return file.read(columns=list(chosen(choose, list(file.schema_arrow.names), str(path))))


def _read_jsonl(path: Path, choose: Choice) -> Any:
    # The standard library and not pyarrow.json: that would read a column of dates as time stamps.
    with path.open(encoding="utf-8-sig") as lines:
        if _holds_an_array(path):
            rows = _json_array(lines.read())
        else:
            rows = [_json_object(line, number) for number, line in enumerate(lines, start=1) if line.strip()]
    if not rows:
        raise ValueError("it has no rows")
    columns = chosen(choose, list(dict.fromkeys(key for row in rows for key in row)), str(path))
    for number, row in enumerate(rows):
        if isinstance(row, _Repeating) and (again := [column for column in columns if column in row.keys_twice]):
            raise DataError(twice(str(path), again[0], place=f" in row {number}"))
    return pa.table({column: pa.array([row.get(column) for row in rows]) for column in columns})


class _Repeating(dict[str, Any]):
    """A JSON object that has a key twice."""

    keys_twice: frozenset[str]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) == len(pairs):
        return row
    keys = [key for key, _ in pairs]
    repeating = _Repeating(row)
    repeating.keys_twice = frozenset(key for key in row if keys.count(key) > 1)
    return repeating


def _holds_an_array(path: Path) -> bool:
    """As alpaca_data.json does; a .jsonl is lines, whatever is in them."""
    with path.open("rb") as file:
        return path.suffix.lower() == ".json" and file.read(4096).removeprefix(BOM_UTF8).lstrip()[:1] == b"["


def _json_array(text: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(text, object_pairs_hook=_object)
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"entry {number}: {type(row).__name__} where an object was expected")
    return rows


def _json_object(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        expected = "expected an object on each line, or in a .json file one array of objects"
        raise ValueError(f"line {number}: {error.msg}; {expected}") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number}: {type(row).__name__} where an object was expected")
    return row


READERS: dict[str, Callable[[Path, Choice], Any]] = {
    "parquet": _read_parquet,
    "csv": partial(read_delimited, delimiter=",", quoted=True),
    "tsv": partial(read_delimited, delimiter="\t", quoted=False),
    "jsonl": _read_jsonl,
}
