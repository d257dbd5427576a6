"""Reads local files as Arrow tables: Parquet, CSV, TSV, JSON, and their .gz forms. Every failure is one DataError line.

A CSV may quote its fields, as usual. A TSV has no quoting, as in GLUE: `"` is a character like any other. A .jsonl file
has one object per line. A .json file may also be one array of objects, or one object whose keys are the columns.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from fibec_ray.data.columns import Choice, chosen, require_columns, twice
from fibec_ray.data.delimited import read_delimited
from fibec_ray.data.layout import Layout, decoded, encoding_of, is_compressed, open_bytes
from fibec_ray.errors import DataError

_PLAIN: dict[str, tuple[str, ...]] = {
    "parquet": (".parquet",),
    "csv": (".csv", ".txt"),
    "tsv": (".tsv", ".tab"),
    "jsonl": (".jsonl", ".json", ".ndjson"),
}
SUFFIXES = {
    name: (*suffixes, *(f"{suffix}.gz" for suffix in suffixes if name != "parquet"))
    for name, suffixes in _PLAIN.items()
}
"""By format. Compressed forms come last: a folder with both has the plain one read."""


def suffix_of(path: Path) -> str:
    """The file's ending, such as '.csv' or '.csv.gz'."""
    inner = Path(path.stem).suffix if is_compressed(path) else ""
    return f"{inner}{path.suffix}".lower()


def format_of(path: Path, layout: Layout) -> str:
    """The format as set, or by the suffix. Raises DataError for an unknown suffix."""
    if layout.format != "auto":
        return layout.format
    suffix = suffix_of(path)
    for name, suffixes in SUFFIXES.items():
        if suffix in suffixes:
            return name
    if suffix in (".xlsx", ".xls", ".ods"):
        raise DataError(f"{path}: spreadsheets are not read; save the table as a CSV file and give that")
    if not suffix:
        raise DataError(f"{path}: its name has no suffix; set data.format to one of {', '.join(_PLAIN)}")
    known = ", ".join(suffix for suffixes in _PLAIN.values() for suffix in suffixes)
    raise DataError(
        f"{path}: unknown suffix {suffix!r}; allowed: {known}, or set data.format to one of {', '.join(_PLAIN)}"
    )


def read_table(path: Path, layout: Layout, columns: tuple[str, ...] | Choice) -> Any:
    """These columns as a pyarrow.Table. CSV and TSV give strings only; the caller knows what they mean."""
    kind = format_of(path, layout)
    if not path.is_file():
        raise DataError(
            f"{path}: {'is not a file' if path.exists() else 'no such file'}; set data.path, data.train or data.test"
        )
    choose = columns if callable(columns) else partial(require_columns, str(path), columns)
    try:
        return READERS[kind](path, choose, layout)
    except (pa.ArrowException, OSError, EOFError, ValueError, OverflowError, RecursionError) as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{path}: cannot be read as {kind} ({first_line}); repair the file, or set data.format"
            f"{'' if kind == 'parquet' else ' or data.encoding'}"
        ) from error


def _read_parquet(path: Path, choose: Choice, layout: Layout) -> Any:
    file = pyarrow.parquet.ParquetFile(path)
    return file.read(columns=list(chosen(choose, list(file.schema_arrow.names), str(path))))


def _read_jsonl(path: Path, choose: Choice, layout: Layout) -> Any:
    # The standard library and not pyarrow.json, which reads a column of dates as time stamps.
    codec = encoding_of(path, layout.encoding, guesses=False)
    codec = "utf-8-sig" if codec == "utf-8" else codec
    with open_bytes(path) as file:
        if Path(suffix_of(path)).stem == ".json":
            rows = _json_rows(decoded(file.read(), codec))
        else:
            rows = _json_lines(io.TextIOWrapper(file, encoding=codec))
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


def _json_rows(text: str) -> list[dict[str, Any]]:
    """Rows of an array of objects; of {"column": values}, as pandas writes it; of {"data": array of objects}.

    If an object is not all of the text, each line is an object.
    """
    try:
        found = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _json_lines(io.StringIO(text, newline=None))
        raise ValueError(f"line {error.lineno}: {error.msg}; {_EXPECTED}") from error
    if isinstance(found, dict):
        found = _rows_of_object(found)
    for number, row in enumerate(found):
        if not isinstance(row, dict):
            raise ValueError(f"entry {number}: {type(row).__name__} where an object was expected")
    rows: list[dict[str, Any]] = found
    return rows


_EXPECTED = "expected an object on each line, or in a .json file one array of objects"


def _rows_of_object(found: dict[str, Any]) -> list[Any]:
    """Rows of pandas' and other tables in one object; the object itself as one row if it is not a table."""
    tables = {key: value for key, value in found.items() if _is_table(value)}
    if len(tables) > 1:
        names = " and ".join(tables)
        raise ValueError(f"it has several tables: {names}; save each as a file of its own, such as train.jsonl")
    if tables:
        return list(next(iter(tables.values())))
    if {"columns", "data"} <= found.keys():  # pandas' orient="split"
        return [dict(zip(found["columns"], row, strict=True)) for row in found["data"]]
    if not found or not all(map(_is_column, found.values())):
        return [found]
    columns = {name: list(value.values() if isinstance(value, dict) else value) for name, value in found.items()}
    if len({len(values) for values in columns.values()}) > 1:
        raise ValueError(f"its columns have different lengths; {_EXPECTED}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _is_column(value: Any) -> bool:
    """A list of plain values, or pandas' {"0": value, "1": value}."""
    if isinstance(value, dict):
        return bool(value) and all(key.isdigit() for key in value)
    return isinstance(value, list) and not any(isinstance(each, dict | list) for each in value)


def _json_lines(lines: Iterable[str]) -> list[dict[str, Any]]:
    return [_json_object(line, number) for number, line in enumerate(lines, start=1) if line.strip()]


def _json_object(line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}: {error.msg}; {_EXPECTED}") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number}: {type(row).__name__} where an object was expected")
    return row


READERS: dict[str, Callable[[Path, Choice, Layout], Any]] = {
    "parquet": _read_parquet,
    "csv": partial(read_delimited, natural=","),
    "tsv": partial(read_delimited, natural="\t"),
    "jsonl": _read_jsonl,
}
