"""Works out from a user's own files what the answers of a task are: classes, scores, or any number of labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from fibec_ray.data.columns import class_names, complete_rows, numbers_of
from fibec_ray.data.flags import names_in
from fibec_ray.data.infer_classes import names_of_classes
from fibec_ray.data.labels import LabelColumn, read_labels
from fibec_ray.errors import DataError

ANY = (-np.inf, np.inf)


class OwnAnswers(Protocol):
    """Reads the label column of each file, and finds the settings of a task from all of them."""

    def read(self, table: Any, column: str, where: str) -> Any:
        """The labels of one file. Raises DataError for a column that holds something else."""

    def is_unlabelled(self, labels: Any) -> bool:
        """True if no row of a file has a label: published test sets often have none."""

    def settings(self, labels: Sequence[Any], drop_missing: bool) -> dict[str, Any]:
        """Settings of the task. labels: of all files. Raises DataError where they leave a question open."""


class OwnClasses:
    """One of several classes. names: set by the user; empty: from the files."""

    def __init__(self, names: Sequence[str] = ()):
        self._names = tuple(names)

    def read(self, table: Any, column: str, where: str) -> LabelColumn:
        own = class_names(table.schema.metadata, column)
        return read_labels(table[column], own, None, where, missing_is_none=True)

    def is_unlabelled(self, labels: LabelColumn) -> bool:
        return labels.is_unlabelled

    def settings(self, labels: Sequence[LabelColumn], drop_missing: bool) -> dict[str, Any]:
        return {"label_names": list(self._names or names_of_classes(labels, drop_missing))}


class OwnScores:
    """A real score; its range is that of the files. drop_missing: rows without a score are left out."""

    def __init__(self, drop_missing: bool):
        self._drop_missing = drop_missing

    def read(self, table: Any, column: str, where: str) -> Any:
        rows = complete_rows(table, (column,), where) if self._drop_missing else None
        return numbers_of(table[column] if rows is None else table[column].take(rows), where, ANY, rows)

    def is_unlabelled(self, labels: Any) -> bool:
        return bool((labels == -1).all())

    def settings(self, labels: Sequence[Any], drop_missing: bool) -> dict[str, Any]:
        values = np.concatenate(labels)
        if np.ptp(values) == 0:
            raise DataError(f"data.path: every row has the score {values[0]:g}; name another column with data.label")
        return {"score_range": [float(values.min()), float(values.max())]}


class OwnFlags:
    """Any number of labels. names: set by the user; empty: from the files."""

    def __init__(self, names: Sequence[str] = ()):
        self._names = tuple(names)

    def read(self, table: Any, column: str, where: str) -> Any:
        own = class_names(table.schema.metadata, column)
        return own or (self._names if self._names else sorted(names_in(table[column], where)))

    def is_unlabelled(self, labels: Any) -> bool:
        return not labels

    def settings(self, labels: Sequence[Any], drop_missing: bool) -> dict[str, Any]:
        names = self._names or tuple(dict.fromkeys(name for part in labels for name in part))
        if not names:
            raise DataError("data.path: no row has a label; name another column with data.label")
        return {"label_names": list(names)}
