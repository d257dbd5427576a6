"""Arrow columns to texts and class ids. Used by `source.py` for files and for the hub alike.

Class ids go by NAME wherever a file knows names (a label column of strings, or class names in the schema), because
copies of one set order its classes differently: TREC on the hub is ABBR first, in the original files DESC first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fibec_ray.data.tasks import Task
from fibec_ray.errors import DataError, did_you_mean


def texts_of(column: Any, where: str) -> list[str]:
    """The column as a list of N strings; N > 0, and at least one is not blank."""
    column = _plain(column)
    if len(column) == 0:
        raise DataError(f"{where}: no rows; give a split with at least one")
    if pa.types.is_null(column.type) or column.null_count:
        raise DataError(f"{where}: no text in row {_first_null(column)}; drop the row or name another column")
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        raise DataError(f"{where}: the values are of type {column.type}, not text; set data.text_columns")
    try:
        texts: list[str] = column.to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: text that is not UTF-8 ({error.reason}); convert the file") from error
    if not any(text.strip() for text in texts):
        raise DataError(f"{where}: the text is empty in all of {len(texts)} rows; name another column")
    return texts


def labels_of(column: Any, names: Sequence[str] | None, task: Task, where: str) -> NDArray[np.int64]:
    """(N,) class ids of the task. `names` are the file's own class names in the order of its ids, where it has them."""
    column = _plain(column)
    if pa.types.is_null(column.type) or column.null_count:
        raise DataError(f"{where}: no label in row {_first_null(column)}; drop the row or name another column")
    values = column.to_pylist()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        if all(_is_whole(value) for value in values):
            return _from_ids(values, names, task, where)
        return _from_names(values, task, where)
    if pa.types.is_boolean(column.type) or pa.types.is_integer(column.type):
        return _from_ids(values, names, task, where)
    if pa.types.is_floating(column.type) and all(float(value).is_integer() for value in values):
        return _from_ids(values, names, task, where)
    raise DataError(
        f"{where}: labels of type {column.type} such as {values[0]!r}; allowed: whole numbers or names "
        f"({_listed(task.label_names)}); set data.label_column"
    )


def class_names(metadata: Mapping[bytes, bytes] | None, label_column: str) -> list[str] | None:
    """The class names in a Parquet file's schema metadata: `datasets`' ClassLabel, or a plain `label_names` list."""
    metadata = metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}")).get("info", {}).get("features", {})
        names = features.get(label_column, {}).get("names") or json.loads(metadata.get(b"label_names", b"null"))
    except (ValueError, AttributeError):
        return None  # metadata of some other program under the same key
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _from_names(values: list[str], task: Task, where: str) -> NDArray[np.int64]:
    ids = {value: _id_of(value, task, where) for value in dict.fromkeys(values)}
    return np.array([ids[value] for value in values], dtype=np.int64)


def _from_ids(values: list[Any], names: Sequence[str] | None, task: Task, where: str) -> NDArray[np.int64]:
    """values: whole numbers, as such or in digits."""
    try:
        ids = np.array([int(value) for value in values], dtype=np.int64)
    except (OverflowError, ValueError) as error:
        raise DataError(f"{where}: a label is a number of more than 64 bits; set data.label_column") from error
    highest = (len(names) if names else task.num_classes) - 1
    if len(ids) and (ids == -1).all():
        raise DataError(
            f"{where}: every label is -1, so the split is unlabelled; set data.eval_split or data.train_splits"
        )
    if (bad := np.flatnonzero((ids < 0) | (ids > highest))).size:
        raise DataError(
            f"{where}: label {ids[bad[0]]} in row {bad[0]}; allowed: 0 to {highest} "
            f"({_listed(names or task.label_names)}); drop the row or set data.label_column"
        )
    if not names:
        return ids
    to_task = {int(old): _id_of(names[old], task, where) for old in np.unique(ids)}
    return np.array([to_task[value] for value in values], dtype=np.int64)


def _id_of(name: str, task: Task, where: str) -> int:
    known = task.label_aliases.get(name, name)
    if known not in task.label_names:
        raise DataError(
            f"{where}: class '{name}' is unknown to task {task.name}; {did_you_mean(name, task.label_names)} "
            "set data.label_column, or name it in the task's label_aliases"
        )
    return task.label_names.index(known)


def _plain(column: Any) -> Any:
    """Dictionary-encoded columns and string views as what they stand for."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string()) if pa.types.is_string_view(column.type) else column


def _first_null(column: Any) -> int:
    return int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]) if len(column) else 0


def _is_whole(text: str) -> bool:
    return text.strip().removeprefix("-").isdecimal()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"{i} {name}" for i, name in enumerate(names))
