"""Which columns of a file or of the hub are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fibec_ray.errors import DataError, did_you_mean

Choice = Callable[[list[str]], tuple[str, ...]]
"""The columns that are there -> those that are wanted; it raises DataError where one is missing."""


def chosen(choose: Choice, there: list[str], where: str) -> tuple[str, ...]:
    """The wanted columns. Raises DataError for one that is there twice; other columns may be."""
    columns = choose(there)
    for column in columns:
        if there.count(column) > 1:
            raise DataError(twice(where, column, there.count(column)))
    return columns


def twice(where: str, column: str, count: int = 2, place: str = "") -> str:
    times = "twice" if count == 2 else f"{count} times"
    return f"{where}: column '{column}' occurs {times}{place}; rename or remove all but one"


def require_columns(
    where: str,
    columns: tuple[str, ...],
    there: Sequence[str],
    remedy: str = "set data.text_columns or data.label_column",
) -> tuple[str, ...]:
    """The columns. Raises DataError for one that is not there."""
    for column in columns:
        if column not in there:
            raise DataError(
                f"{where}: no column '{column}'; it has {', '.join(there) or 'no columns'}; "
                f"{did_you_mean(column, there)} {remedy}"
            )
    return columns
