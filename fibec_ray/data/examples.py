"""Samples in memory, the same from every source: texts for encoders, numbers for `dense.py`. N rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from fibec_ray.seeds import Where, numpy_generator

AnyGrouped = TypeVar("AnyGrouped", bound="Grouped")


class Rows:
    """Base of dataclasses with columns of N rows (lists, arrays, an `Origin`). Other fields apply to all rows."""

    labels: NDArray[np.int64]
    """(N,) groups by which partitions deal: class ids in the order of the task's label_names, or regions of a domain"""
    users: list[str] | None
    """N ids of users, if the partition deals by them"""

    def texts(self) -> list[str] | None:
        """The text of each of N rows, as a model reads it and without the answer; None for rows that are not text."""
        return None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> Self:
        """These rows, in this order."""
        return type(self)(**{name: _taken(column, rows) for name, column in vars(self).items()})

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, in order. The parts come from one task and have the same columns."""
        columns = {name: [vars(part)[name] for part in parts] for name in vars(parts[0])}
        return cls(**{name: _joined(values) for name, values in columns.items()})

    def at_most(self, limit: int | None, seed: int, *where: Where) -> Self:
        """A seeded subset of `limit` rows in their old order; all rows if the limit is None or not reached."""
        if limit is None or limit >= len(self):
            return self
        rows = numpy_generator(seed, "subsample", *where).permutation(len(self))[:limit]
        return self.take(np.sort(rows).astype(np.int64))


@dataclass(frozen=True)
class Origin:
    """The file and row that each of N rows comes from, for error messages."""

    files: tuple[str, ...]
    file: NDArray[np.int64]
    """(N,) positions in `files`"""
    row: NDArray[np.int64]
    """(N,) row of that file, counted from 0"""
    dropped: int = 0
    """rows of the files that were left out"""

    @staticmethod
    def of(where: str, count: int, rows: NDArray[np.int64] | None = None) -> Origin:
        """All `count` rows of a file, or these of them."""
        numbers = np.arange(count, dtype=np.int64) if rows is None else rows
        return Origin((where,), np.zeros(len(numbers), np.int64), numbers, count - len(numbers))

    def take(self, rows: NDArray[np.int64]) -> Origin:
        """The origin of these rows."""
        return replace(self, file=self.file[rows], row=self.row[rows])

    def place(self, row: int) -> str:
        """File and row of a sample, for messages."""
        return f"{self.files[self.file[row]]}, row {self.row[row]}"

    @staticmethod
    def join(parts: Sequence[Origin | None]) -> Origin | None:
        """Concatenate origins; None if any is unknown."""
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or not parts:
            return None
        starts = np.cumsum([0, *(len(part.files) for part in known)])
        return Origin(
            tuple(name for part in known for name in part.files),
            np.concatenate([part.file + start for part, start in zip(known, starts, strict=False)]),
            np.concatenate([part.row for part in known]),
            sum(part.dropped for part in known),
        )


@dataclass(frozen=True)
class Examples(Rows):
    """Texts, or pairs of texts, with class labels or other answers."""

    texts_a: list[str]
    texts_b: list[str] | None
    """the second text of a pair; None for single-text tasks"""
    labels: NDArray[np.int64]
    true_difficulty: NDArray[np.float32] | None = None
    """(N,) true difficulty in [0, 1]; known for the embedded task only"""
    users: list[str] | None = None
    """N ids of users, if the partition deals by them"""
    origin: Origin | None = None
    """None for embedded sets"""
    targets: NDArray[Any] | None = None
    """(N, ...) what a model should answer, if that is not the label: float32 values, (N, C) flags"""

    @property
    def answers(self) -> NDArray[Any]:
        """(N, ...) what a model should answer."""
        return self.labels if self.targets is None else self.targets

    def texts(self) -> list[str]:
        """The texts; pairs are joined by a line end."""
        return self.texts_a if self.texts_b is None else _lines(self.texts_a, self.texts_b)


class Grouped(Rows):
    """Base of dataclasses of rows that may have categories."""

    categories: tuple[str, ...]
    """their names; ("",) if the set has none"""

    @property
    def has_categories(self) -> bool:
        """True if the rows have categories."""
        return self.categories != ("",)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The rows of all parts, with one list of categories."""
        return super().join(cls.alike(parts))

    @staticmethod
    def alike(parts: Sequence[AnyGrouped]) -> list[AnyGrouped]:
        """The same sets with one alphabetical list of categories; with none if a part has none."""
        if not all(part.has_categories for part in parts):
            return [_grouped(part, np.zeros(len(part), np.int64), ("",)) for part in parts]
        names = tuple(sorted({name for part in parts for name in part.categories}))
        numbers = [np.array([names.index(name) for name in part.categories], np.int64) for part in parts]
        return [_grouped(part, number[part.labels], names) for part, number in zip(parts, numbers, strict=True)]


def _grouped(rows: AnyGrouped, labels: NDArray[np.int64], categories: tuple[str, ...]) -> AnyGrouped:
    return type(rows)(**{**vars(rows), "labels": labels, "categories": categories})


@dataclass(frozen=True)
class Instructions(Grouped):
    """Instructions, their inputs, and the expected responses."""

    instructions: list[str]
    inputs: list[str]
    """"" for rows without one"""
    responses: list[str]
    labels: NDArray[np.int64]
    """(N,) categories, as positions in `categories`"""
    categories: tuple[str, ...]
    """their names; ("",) if the set has none"""
    true_difficulty: NDArray[np.float32] | None = None
    """(N,) true difficulty in [0, 1]; known for the embedded exercises only"""
    users: list[str] | None = None
    """N ids of users, if the partition deals by them"""
    origin: Origin | None = None
    """None for embedded sets"""

    def texts(self) -> list[str]:
        """Instructions and inputs, without responses."""
        return _lines(self.instructions, self.inputs)


@dataclass(frozen=True)
class Pairs(Grouped):
    """Prompts with two responses each, a better and a worse one."""

    prompts: list[str]
    chosen: list[str]
    """the better responses"""
    rejected: list[str]
    """the worse ones"""
    labels: NDArray[np.int64]
    """(N,) categories, as positions in `categories`"""
    categories: tuple[str, ...]
    """their names; ("",) if the set has none"""
    true_difficulty: NDArray[np.float32] | None = None
    """(N,) true difficulty in [0, 1]; known for embedded sets only"""
    users: list[str] | None = None
    """N ids of users, if the partition deals by them"""
    origin: Origin | None = None
    """None for embedded sets"""

    def texts(self) -> list[str]:
        """The prompts, without responses."""
        return self.prompts


@dataclass(frozen=True)
class Points(Rows):
    """Samples that are not text."""

    features: NDArray[np.float32]
    """(N, *shape)"""
    labels: NDArray[np.int64]
    values: NDArray[np.float32] | None = None
    """(N,) targets of a regression; None: the labels are the targets"""
    num_groups: int | None = None
    """number of different labels, if they are regions; None: they are classes"""
    users: list[str] | None = None
    """N ids of users, if the partition deals by them"""


def _lines(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """The texts of both columns, row by row; an empty second text adds nothing."""
    return [f"{a}\n{b}" if b else a for a, b in zip(first, second, strict=True)]


def _taken(column: Any, rows: NDArray[np.int64]) -> Any:
    if isinstance(column, list):
        return [column[row] for row in rows]
    return (
        column.take(rows) if isinstance(column, Origin) else column[rows] if isinstance(column, np.ndarray) else column
    )


def _joined(columns: list[Any]) -> Any:
    first = columns[0]
    if isinstance(first, list):
        return [value for column in columns for value in column]
    if isinstance(first, np.ndarray):
        return np.concatenate(columns)
    return Origin.join(columns) if isinstance(first, Origin) else first
