"""Picks columns of a table, reads their texts, and finds class names in Parquet metadata."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fibec_ray.errors import DataError, did_you_mean

Choice = Callable[[list[str]], tuple[str, ...]]
"""Chooses columns from the names in a file; raises DataError if one is missing."""


def chosen(choose: Choice, there: list[str], where: str) -> tuple[str, ...]:
    """The chosen columns. Raises DataError if one of them occurs twice; other columns may."""
    columns = choose(there)
    for column in columns:
        if there.count(column) > 1:
            raise DataError(twice(where, column, there.count(column)))
    return columns


def twice(where: str, column: str, count: int = 2, place: str = "") -> str:
    """The message for a column name that occurs more than once."""
    times = "twice" if count == 2 else f"{count} times"
    return f"{where}: column '{column}' occurs {times}{place}; rename or remove all but one"


def require_columns(
    where: str,
    columns: tuple[str, ...],
    there: Sequence[str],
    remedy: str = "set data.text or data.label",
) -> tuple[str, ...]:
    """The columns. Raises DataError for a missing one."""
    for column in columns:
        if column not in there:
            raise DataError(
                f"{where}: no column '{column}'; it has {', '.join(there) or 'no columns'}; "
                f"{did_you_mean(column, there, remedy)}"
            )
    return columns


MISSING = "fill it in, set data.drop_missing=true to leave such rows out"
OTHER = "name another column with data.text"
NO_SCORE = f"{MISSING}, or name another column with data.label"
LARGEST = 1e30
"""Size of a score at most. Errors and ranges then stay finite in float32."""


def texts_of(column: Any, where: str, missing: str = MISSING, other: str = OTHER) -> list[str]:
    """The column as a list of N strings; N > 0, and at least one is not blank.

    missing, other: what to do about a row without text, and about a column that is not text.
    """
    column = plain(column)
    if len(column) == 0:
        raise DataError(f"{where}: no rows; give a split with at least one")
    if pa.types.is_null(column.type) or column.null_count:
        raise DataError(f"{where}: no text in row {first_null(column)}; {missing}, or {other}")
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"{where}: the values are of type {column.type}, not text; {other}")
    texts = pylist(column, where)
    if not any(text.strip() for text in texts):
        raise DataError(f"{where}: the text is empty in all of {len(texts)} rows; {other}")
    return texts


def complete_rows(table: Any, columns: Sequence[str], where: str) -> NDArray[np.int64]:
    """Rows that have a value in each of these columns: no null, NaN or blank. Raises DataError if there are none."""
    has_all = np.ones(table.num_rows, dtype=bool)
    for name in columns:
        column = plain(table[name])
        has_all &= ~column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(column)), 0)
            has_all &= ~pc.fill_null(blank, True).to_numpy(zero_copy_only=False)
    if not has_all.any():
        raise DataError(f"{where}: no row has a value in each of the columns {', '.join(map(repr, columns))}")
    return np.flatnonzero(has_all).astype(np.int64)


def values_of(column: Any, where: str, rows: Sequence[int] | NDArray[np.int64] | None = None) -> list[str]:
    """The column's values as strings, for ids of users.

    rows: (N,) the rows that are used; None: all. Raises DataError for a row without a value, and for lists.
    """
    column = plain(column)
    numbers = np.arange(len(column)) if rows is None else np.asarray(rows, dtype=np.int64)
    column = column.take(numbers)
    if pa.types.is_nested(column.type):
        raise DataError(f"{where}: values of type {column.type}; a column of numbers or text is needed")
    null = column.null_count or pa.types.is_null(column.type)
    found = [] if null else [str(value).strip() for value in pylist(column, where)]
    if null or "" in found:
        row = numbers[first_null(column) if null else found.index("")] if len(numbers) else 0
        raise DataError(f"{where}: no value in row {row}; fill it in, or remove the row")
    return found


def numbers_of(
    column: Any, where: str, within: tuple[float, float], rows: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """The column as (N,) float64.

    rows: (N,) their numbers in the file, for messages; None: all of the file. Raises DataError for a row without a
    number, and for one outside of `within`.
    """
    column = plain(column)
    numbers = np.arange(len(column)) if rows is None else rows
    if not len(column):
        raise DataError(f"{where}: no rows; give a split with at least one")
    if is_text := pa.types.is_string(column.type) or pa.types.is_large_string(column.type):  # as all columns of a CSV
        column = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
    if column.null_count or pa.types.is_null(column.type):
        raise DataError(f"{where}: no score in row {numbers[first_null(column)]}; {NO_SCORE}")
    if pa.types.is_boolean(column.type) or pa.types.is_nested(column.type):
        raise DataError(f"{where}: the values are of type {column.type}, not numbers; name another with data.label")
    try:
        values: NDArray[np.float64] = pc.cast(column, pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:  # a value, or the type of the column
        which = _not_a_number(column.to_pylist(), numbers) if is_text else str(error)
        raise DataError(
            f"{where}: the values are not all numbers ({which}); correct them, or name another column with data.label"
        ) from error
    if len(lost := np.flatnonzero(np.isnan(values))):
        raise DataError(f"{where}: no score in row {numbers[lost[0]]}; {NO_SCORE}")
    if len(wide := np.flatnonzero(np.abs(values) > LARGEST)):
        raise DataError(
            f"{where}: the score {values[wide[0]]:g} in row {numbers[wide[0]]}; allowed: {-LARGEST:g} to {LARGEST:g}; "
            "correct it, or remove the row"
        )
    low, high = within
    odd = np.flatnonzero((values < low) | (values > high))
    if len(odd):
        raise DataError(
            f"{where}: the score {values[odd[0]]:g} in row {numbers[odd[0]]} is outside of task.score_range "
            f"[{low:g}, {high:g}]; set 'task.score_range=[{min(low, values.min())},{max(high, values.max())}]'"
        )
    return values


def _not_a_number(texts: Sequence[str], rows: NDArray[np.int64]) -> str:
    """Say which text is not a number."""
    for row, text in zip(rows, texts, strict=True):
        try:
            float(text)
        except ValueError:
            return f"{text[:40]!r} in row {row}"
    return "text"


def pylist(column: Any, where: str) -> list[Any]:
    """The column's values. Raises DataError for text that is not UTF-8."""
    try:
        found: list[Any] = column.to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: text that is not UTF-8 ({error.reason}); convert the file") from error
    return found


def class_names(metadata: Mapping[bytes, bytes] | None, label_column: str) -> list[str] | None:
    """The class names in a Parquet file's schema metadata: `datasets`' ClassLabel, or a plain `label_names` list."""
    metadata = metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        feature = features.get(label_column, {})
        if isinstance(feature, list):  # of lists, as older releases of `datasets` write it
            feature = feature[0]
        names = feature.get("feature", feature).get("names") or json.loads(metadata.get(b"label_names", b"null"))
    except (ValueError, AttributeError, IndexError):
        return None  # another program uses the same key
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def plain(column: Any) -> Any:
    """Decode dictionary-encoded columns and string views."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string()) if pa.types.is_string_view(column.type) else column


def first_null(column: Any) -> int:
    """The first row without a value; pandas writes a missing number as NaN."""
    return int(np.flatnonzero(column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False))[0]) if len(column) else 0
