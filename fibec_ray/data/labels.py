"""Converts label columns to class ids, for files and for the hub alike.

A label is the name of a class (as in `label_names` or `label_aliases`) or an id, a position in `label_names`. Names are
tried first, whatever their type in the file: the text "1", the numbers 1 and 1.0, true for a class "True". Other whole
numbers are ids. A Parquet file may have its own class names; then its numbers are positions among those, because copies
of one set order their classes differently: TREC starts with ABBR on the hub and with DESC in the original files.

All files of a run are read the same way, even if a split lacks some classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fibec_ray.data.columns import first_null, plain, pylist
from fibec_ray.data.described import Classes
from fibec_ray.errors import DataError, did_you_mean

Reading = Literal["auto", "names", "ids"]
Value = str | int | float | bool

_NUMBER = re.compile(r"[+-]?\d{1,18}(\.\d{0,18})?", re.ASCII)
_LONGEST = 80
"""characters of a label that an error shows"""
DROP = "fill it in, set data.drop_missing=true to leave such rows out, or name another column with data.label"


@dataclass(frozen=True)
class LabelColumn:
    """A label column as it is in the file, N rows."""

    values: list[Value]
    """the different ones"""
    codes: NDArray[np.int64]
    """(N,) positions in `values`"""
    names: Sequence[str] | None
    """the file's own class names in the order of its ids, if it has any"""
    where: str
    kind: str
    """Arrow's name for its type"""
    rows: NDArray[np.int64] | None = None
    """(N,) their numbers in the file, where other rows are left out"""

    @property
    def is_text(self) -> bool:
        """True if any value is a string."""
        return any(isinstance(value, str) for value in self.values)

    @property
    def is_whole(self) -> bool:
        """True if every label is a whole number or a boolean, also as text."""
        return all(whole(value) is not None for value in self.values)

    @property
    def has_own_ids(self) -> bool:
        """True for whole numbers with class names in the file."""
        return bool(self.names) and not self.is_text

    @property
    def is_unlabelled(self) -> bool:
        """True if no row has a label: published test sets have -1 or blanks."""
        return all(is_missing(value) or value in (-1, "-1", "?") for value in self.values)

    def place(self, at: int) -> str:
        """The first row with value number `at`."""
        first = int(np.flatnonzero(self.codes == at)[0])
        return f"in row {first if self.rows is None else self.rows[first]}"


def read_labels(
    column: Any, names: Sequence[str] | None, task: Classes | None, where: str, missing_is_none: bool = False
) -> LabelColumn:
    """An Arrow column, before it is known what its labels mean.

    task: for messages; None if the classes are not known yet. missing_is_none: rows without a label have the value
    None; otherwise they are an error. Raises DataError for them, and for types that no label has.
    """
    column = plain(column)
    missing = column.is_null(nan_is_null=True)
    has_missing = pa.types.is_null(column.type) or column.null_count or pc.any(missing).as_py()
    if has_missing and not missing_is_none:
        raise DataError(f"{where}: no label in row {first_null(column)}; {DROP}")
    kinds = (
        "string",
        "large_string",
        "boolean",
        "integer",
        "floating",
        "decimal",
        *(("null",) if missing_is_none else ()),
    )
    if not any(getattr(pa.types, f"is_{kind}")(column.type) for kind in kinds):
        raise DataError(_no_label(where, str(column.type), column[0].as_py(), task))
    seen: dict[Value, int] = {}
    values = _values(column, where)
    if has_missing:
        values = [None if gone else value for value, gone in zip(values, missing.to_pylist(), strict=True)]  # type: ignore[misc]
    codes = np.array([seen.setdefault(value, len(seen)) for value in values], dtype=np.int64)
    return LabelColumn(list(seen), codes, names, where, str(column.type))


def class_ids(columns: Sequence[LabelColumn], task: Classes, reading: Reading) -> list[NDArray[np.int64]]:
    """(N,) class ids for each column. columns: those of all files of a run.

    Raises DataError for a label that is not a class of the task.
    """
    names = _Names(task)
    open_ = [column for column in columns if column.is_whole and not column.has_own_ids]
    named = all(names.find(value) is not None for column in open_ for value in column.values)
    if reading == "auto" and open_ and named:
        _refuse_doubt(open_, names, task)
    by_name = reading == "names" or (reading == "auto" and named)
    found = []
    for column in columns:
        if column.has_own_ids or (column.is_whole and not by_name):
            ids = _from_ids(column, names, task)
        elif reading == "ids":
            at = next(at for at, value in enumerate(column.values) if whole(value) is None)
            raise DataError(
                f"{column.where}: label {shown(column.values[at])} {column.place(at)} is not a whole number; set "
                "data.labels to names or auto, or set data.label_column"
            )
        else:
            for at in (at for at, value in enumerate(column.values) if whole(value) is None):
                _named(column, at, names, task)  # report these first: without them the column would be ids
            ids = [_named(column, at, names, task) for at in range(len(column.values))]
        found.append(np.array(ids, dtype=np.int64)[column.codes])
    return found


def is_missing(value: Any) -> bool:
    """True for null and for empty text."""
    return value is None or (isinstance(value, str) and not value.strip())


def whole(value: Value) -> int | None:
    """1 for 1, 1.0, "1", " 1 ", "1.0" and true; None if the value is not a whole number."""
    number = _number(value)
    return int(number) if number is not None and number == number // 1 else None


class _Names:
    """Finds the class that a value names."""

    def __init__(self, task: Classes):
        ids = {name: i for i, name in enumerate(task.label_names)}
        self._aliases = {other: ids[name] for other, name in task.label_aliases.items()}
        self._exact = ids | self._aliases
        self._by_number: dict[float, set[int]] = {}
        for name, id_ in self._exact.items():
            if (number := _number(name)) is not None:
                self._by_number.setdefault(number, set()).add(id_)
        self._flags = {name.lower(): id_ for name, id_ in self._exact.items() if name.lower() in ("true", "false")}

    @property
    def has_numbers(self) -> bool:
        return bool(self._by_number)

    def find(self, value: Value) -> int | None:
        """The class with this name, or None."""
        exact = self.certain(value)
        if exact is not None:
            return exact
        text = str(value).strip()
        number = _number(value)
        same = set() if number is None else self._by_number.get(number, set())
        return self._exact.get(text, next(iter(same)) if len(same) == 1 else None)

    def certain(self, value: Value) -> int | None:
        """The class of a value that cannot be an id: an alias exactly as the user wrote it, or a boolean by name."""
        if isinstance(value, bool):
            return self._flags.get(str(value).lower())
        return self._exact.get(value) if isinstance(value, str) else self._aliases.get(str(value))


def _refuse_doubt(columns: Sequence[LabelColumn], names: _Names, task: Classes) -> None:
    """Raise DataError for numbers that could be names of classes or ids of other classes. Text is never in doubt."""
    if not all(whole(value) in range(len(task.label_names)) for column in columns for value in column.values):
        return
    for column in (column for column in columns if not column.is_text):
        for value in column.values:
            name, id_ = names.find(value), whole(value)
            if name != id_ and names.certain(value) is None and name is not None and id_ is not None:
                raise DataError(
                    f"{column.where}: the label {value} may be the name of class '{task.label_names[name]}', or the "
                    f"id of class '{task.label_names[id_]}'; set data.labels to names or to ids"
                )


def _from_ids(column: LabelColumn, names: _Names, task: Classes) -> list[int]:
    ids = [whole(value) for value in column.values]
    if ids and set(ids) == {-1}:
        raise DataError(
            f"{column.where}: every label is -1, so the split is unlabelled; set data.eval_split or data.train_splits"
        )
    highest = (len(column.names) if column.names else len(task.label_names)) - 1
    for at, id_ in enumerate(ids):
        if id_ is None or not 0 <= id_ <= highest:
            neither = "" if column.names or not names.has_numbers else " is neither a name nor an id"
            raise DataError(
                f"{column.where}: label {shown(column.values[at], quoted=False)} {column.place(at)}{neither}; "
                f"allowed: 0 to {highest} ({_listed(column.names or task.label_names)}); drop the row or set "
                "data.label_column"
            )
    if not column.names:
        return [id_ for id_ in ids if id_ is not None]
    return [_id_of(column.names[id_], names, task, column.where) for id_ in ids if id_ is not None]


def _named(column: LabelColumn, at: int, names: _Names, task: Classes) -> int:
    value = column.values[at]
    if isinstance(value, str) or whole(value) is not None or names.find(value) is not None:
        return _id_of(value, names, task, column.where, f" ({column.place(at)})")
    raise DataError(_no_label(column.where, column.kind, value, task))


def _id_of(name: Value, names: _Names, task: Classes, where: str, place: str = "") -> int:
    found = names.find(name)
    if found is None:
        text = shown(name, quoted=False)
        raise DataError(
            f"{where}: class '{text}' is unknown to task {task.name}; "
            + did_you_mean(text, task.label_names, "set data.label_column, or name it in the task's label_aliases")
            + place
        )
    return found


def _no_label(where: str, kind: str, value: Any, task: Classes | None) -> str:
    names = f" ({_listed(task.label_names)})" if task else ""
    if kind.startswith(("list", "large_list")):
        remedy = "set task.kind=multi_label, or name another column with data.label"
        return f"{where}: every row has a list of labels; {remedy}"
    return (
        f"{where}: labels of type {kind} such as {shown(value)}; allowed: whole numbers or names{names}; "
        "name another column with data.label"
    )


def _values(column: Any, where: str) -> list[Value]:
    if pa.types.is_decimal(column.type):
        return [float(value) for value in column.to_pylist()]
    if pa.types.is_float16(column.type) or pa.types.is_float32(column.type):
        return [float(str(value)) for value in column.to_numpy()]  # 0.1 and not 0.10000000149
    return pylist(column, where)


def _number(value: Value) -> float | None:
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not _NUMBER.fullmatch(text):
        return None
    return float(text) if "." in text else int(text)


def shown(value: Any, quoted: bool = True) -> str:
    """A value of a column, for messages."""
    text = repr(value) if quoted else str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"{i} {name}" for i, name in enumerate(names))
