"""Reads columns of words and of tags.

Both are lists, as in Parquet and JSON lines, or text with spaces between words, as in a CSV. Tags are names or whole
numbers. A number counts in the names that a Parquet file has for the column, if it has some, and in the task's
label_names otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fibec_ray.data.columns import plain, pylist
from fibec_ray.data.labels import shown, whole
from fibec_ray.errors import DataError, did_you_mean

EMPTY = "fill it in, or set data.drop_missing=true to leave such rows out"


def tagged_rows(
    table: Any, columns: tuple[str, str], label_names: Sequence[str], where: str, drop_empty: bool
) -> tuple[list[list[str]], list[list[int]], NDArray[np.int64]]:
    """Words and tags of N rows of a table, and the numbers of these rows. columns: of words, and of tags.

    drop_empty: leave out rows without words or without tags. Raises DataError for rows that do not fit.
    """
    in_words, in_tags = (f"{where}, column '{column}'" for column in columns)
    words, tags = (_lists(table[column], f"{where}, column '{column}'") for column in columns)
    if not words:
        raise DataError(f"{in_words}: no rows; give a split with at least one")
    empty = [row for row, each in enumerate(words) if not each or not tags[row]]
    if empty and not drop_empty:
        lost = f"{in_tags}: no tags" if words[empty[0]] else f"{in_words}: no words"
        raise DataError(f"{lost} in row {empty[0]}; {EMPTY}")
    rows = sorted(set(range(len(words))) - set(empty))
    if not rows:
        raise DataError(
            f"{where}: none of {len(words)} rows has words in column '{columns[0]}' and tags in column '{columns[1]}'; "
            "name other columns with data.text and data.label"
        )
    read = _TagReader(names_of(table.schema.metadata, columns[1]), label_names, in_tags)
    found = []
    for row in rows:
        if bad := [word for word in words[row] if not isinstance(word, str)]:
            raise DataError(f"{in_words}: {shown(bad[0])} in row {row} is not text; give a list of words in each row")
        if len(tags[row]) != len(words[row]):
            raise DataError(
                f"{in_tags}: {len(tags[row])} tags in row {row} for {len(words[row])} words; give each word one tag"
            )
        found.append([read(tag, row) for tag in tags[row]])
    return [words[row] for row in rows], found, np.array(rows, dtype=np.int64)


def names_of(metadata: Mapping[bytes, bytes] | None, column: str) -> list[str] | None:
    """The names of the tags in a Parquet file's schema metadata, as `datasets` writes them; None if there are none."""
    try:
        features = json.loads((metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        inner = features.get(column, {})
        inner = inner[0] if isinstance(inner, list) else inner.get("feature", {})
        names = inner.get("names")
    except (ValueError, AttributeError, IndexError):
        return None  # another program uses the same key
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


class _TagReader:
    """Finds the position of a tag in the task's label_names. names: of the numbers in the column."""

    def __init__(self, names: Sequence[str] | None, label_names: Sequence[str], where: str):
        self._names, self._where = names or label_names, where
        self._label_names, self._ids = label_names, {name: i for i, name in enumerate(label_names)}

    def __call__(self, tag: Any, row: int) -> int:
        found = self._ids.get(tag) if isinstance(tag, str) else None
        if found is None:
            found = self._ids.get(self._name_of(tag, row), -1)
        if found < 0:
            name = self._name_of(tag, row)
            raise DataError(
                f"{self._where}: tag {shown(name)} in row {row} is unknown to the task; "
                f"{did_you_mean(name, self._label_names, 'name it in task.label_names, or set data.label')}"
            )
        return found

    def _name_of(self, tag: Any, row: int) -> str:
        """The name of a number; other text as it is."""
        number = whole(tag) if isinstance(tag, str | int | float) and not isinstance(tag, bool) else None
        if number is None:
            if isinstance(tag, str):
                return tag
            raise DataError(f"{self._where}: tag {shown(tag)} in row {row}; give names or whole numbers")
        if not 0 <= number < len(self._names):
            raise DataError(
                f"{self._where}: tag {number} in row {row}; allowed: 0 to {len(self._names) - 1} "
                f"({', '.join(self._names)}); set data.label to the column of tags, or task.label_names"
            )
        return self._names[number]


def _lists(column: Any, where: str) -> list[list[Any]]:
    """The values of each row. A missing list is empty, and text is cut at white space."""
    column = plain(column)
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (is_list or is_text):
        raise DataError(
            f"{where}: values of type {kind}; give a list in each row, or text with spaces between words; name other "
            "columns with data.text and data.label"
        )
    return [[] if value is None else value.split() if is_text else value for value in pylist(column, where)]
