"""Reads which of several labels each row has: a list of names or ids, or text such as 'joy, anger'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fibec_ray.data.columns import pylist
from fibec_ray.data.labels import is_missing
from fibec_ray.errors import DataError, did_you_mean

DELIMITERS = ",;|"


def flags_of(
    column: Any,
    names: Sequence[str],
    own: Sequence[str] | None,
    where: str,
    rows: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """(N, C) float32, 1 for the labels that a row has.

    column: of lists of names or ids, of text with names between delimiters, or of one name or id; empty for no label.
    names: of the labels. own: the file's own names in the order of its ids. rows: (N,) numbers of the rows in the file,
    for messages; None: all of the file. Raises DataError for an unknown label.
    """
    number = {name: i for i, name in enumerate(names)}
    found = np.zeros((len(column), len(names)), dtype=np.float32)
    for row, value in enumerate(pylist(column, where)):
        for label in _labels(value):
            found[row, _number(label, number, own, f"{where}, row {row if rows is None else rows[row]}")] = 1
    return found


def names_in(column: Any, where: str) -> set[str]:
    """The different labels of a column of names. Raises DataError for ids, which say no names."""
    labels = {label for value in pylist(column, where) for label in _labels(value)}
    if odd := [label for label in labels if not isinstance(label, str)]:
        raise DataError(f"{where}: labels such as {odd[0]!r} are ids; name them with task.label_names=[...]")
    return {str(label) for label in labels}


def _labels(value: Any) -> list[str | int]:
    """Labels of one row."""
    if isinstance(value, str):
        for delimiter in DELIMITERS:
            value = value.replace(delimiter, DELIMITERS[0])
        value = value.split(DELIMITERS[0])
    labels = value if isinstance(value, list) else [value]
    return [_label(each) for each in labels if not is_missing(each) and each == each]  # pandas writes NaN for null


def _label(value: Any) -> Any:
    """A name without spaces around it, or an id. pandas writes ids as 1.0 where others are missing."""
    if isinstance(value, str):
        return value.strip()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(label: Any, number: dict[str, int], own: Sequence[str] | None, where: str) -> int:
    """The position of a label among the task's."""
    if own is not None and isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(own):
        label = own[label]
    if label in number:
        return number[label]
    text = str(label)
    if text.isdecimal() and int(text) < len(number):
        return int(text)
    raise DataError(
        f"{where}: label {text!r} is unknown to the task; "
        + did_you_mean(text, number, "set task.label_names, or name another column with data.label")
    )
