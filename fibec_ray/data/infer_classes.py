"""Works out the classes of a data set from its labels, for data without a task."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fibec_ray.data.labels import DROP, LabelColumn, Value, is_missing, shown, whole
from fibec_ray.errors import DataError

MOST_CLASSES = 1000


def names_of_classes(columns: Sequence[LabelColumn], drop_missing: bool) -> tuple[str, ...]:
    """The classes of a data set without a task: its different labels, numbers in their order, text in the alphabet's.

    columns: those of all files; a file's own class names are taken in their order. Raises DataError where the labels
    are missing, all the same, fractions, or so many that they cannot be classes.
    """
    own = next((column for column in columns if column.has_own_ids), None)
    if own is not None and own.names:
        return tuple(own.names)
    values: dict[Value, None] = {}  # a set that keeps its order, for messages
    for column in columns:
        blank = [at for at, value in enumerate(column.values) if is_missing(value)]
        rows = np.flatnonzero(np.isin(column.codes, blank))
        if len(rows) and not drop_missing:
            more = f" and {len(rows) - 1:,} more" if len(rows) > 1 else ""
            raise DataError(f"{column.where}: no label in row {rows[0]}{more}; {DROP}")
        values |= dict.fromkeys(value for value in column.values if not is_missing(value))
    where, num_rows = columns[0].where, sum(len(column.codes) for column in columns)
    if not num_rows:
        raise DataError(f"{where}: no rows; give a file with at least one")
    numbers = {whole(value) for value in values}
    if None not in numbers and not any(isinstance(value, bool) for value in values):
        names = [str(number) for number in sorted(number for number in numbers if number is not None)]
    else:
        fractions = [value for value in values if whole(value) is None and _is_fraction(value)]
        if fractions and all(whole(value) is not None or _is_fraction(value) for value in values):
            raise DataError(
                f"{where}: the labels are fractions such as {shown(fractions[0], quoted=False)}, scores and not "
                "classes; set task.kind=text_regression to predict them, or name another column with data.label"
            )
        names = sorted({str(value).strip() for value in values}, key=lambda name: (name.casefold(), name))
    if len(names) < 2:
        label = f"every row has the label {shown(names[0])}" if names else "no row has a label"
        raise DataError(f"{where}: {label}; 2 or more classes are needed; name another column with data.label")
    if len(names) > max(20, num_rows // 2) or len(names) > MOST_CLASSES:
        raise DataError(
            f"{where}: {len(names):,} different values in {num_rows:,} rows, at most {MOST_CLASSES:,} classes are "
            f"allowed; the first are {', '.join(map(shown, names[:3]))}; name another column with data.label"
        )
    return tuple(names)


def _is_fraction(value: Value) -> bool:
    try:
        return float(value) % 1 != 0
    except ValueError:
        return False
