"""Kinds of task whose rows come from tables: local files, URLs or the Hugging Face hub."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

from fibec_ray.data.columns import complete_rows, require_columns, values_of
from fibec_ray.data.held_out import at_random, held_out
from fibec_ray.data.settings import FILE_SETTINGS, TEST_FRACTION, TEXT_FILE_SETTINGS, DataConfig
from fibec_ray.data.source import Table, read_tables
from fibec_ray.data.stamps import Stamp, stamps_of
from fibec_ray.errors import DataError
from fibec_ray.tasks.base import Splits, Task, refuse_twice
from fibec_ray.tasks.texts import Texts

FILES_ONLY = ("format", *TEXT_FILE_SETTINGS)
OVERRIDES = ("train_splits", "eval_split", "text_columns", "image_column", "image_size", "label_column")
"""Settings of `data` that replace the task's own of the same name, if the kind has it."""


class FromTables(Task):
    """A data set in tables. A kind says which columns it reads (`columns`) and what rows they give (`rows_of`)."""

    hub: str | None = Field(None, description="data set on the Hugging Face hub; null: local files only")
    hub_config: str | None = Field(None, description="configuration of the set on the hub, such as sst2 of glue")
    train_splits: tuple[str, ...] = Field(("train",), min_length=1, description="splits of the training rows")
    eval_split: str | None = Field(
        "validation", description="split of the test rows; null: data.test_fraction of the training rows are held out"
    )

    has_columns: ClassVar[bool] = True
    uses: ClassVar[tuple[str, ...]] = (
        *FILE_SETTINGS,
        *FILES_ONLY,
        "revision",
        "train_splits",
        "eval_split",
        "test_fraction",
        "max_length",
    )
    test_fraction: ClassVar[float] = TEST_FRACTION
    """share of the rows that is held out, if `data.test_fraction` is not set"""

    @abstractmethod
    def columns(self, there: list[str], where: str) -> tuple[str, ...]:
        """The columns to read of a table that has the columns `there`. Raises DataError if one is missing."""

    @abstractmethod
    def rows_of(self, tables: Sequence[Table], config: DataConfig) -> list[Any]:
        """The rows of each table, with their `origin`. All tables of a run are read together, so labels mean the same.

        Raises DataError for values that do not fit.
        """

    def strata(self, train: Any) -> Any:
        """(N,) groups that keep their share when test rows are held out; None: rows are held out at random."""
        return None

    @property
    def splits(self) -> Splits:
        return Splits(self.train_splits, self.eval_split)

    def effective(self, config: DataConfig) -> Self:
        self.refuse_without_effect(config)
        given = {name: getattr(config, name) for name in OVERRIDES if name in type(self).model_fields}
        update = self.on_the_hub(config) | {name: value for name, value in given.items() if value is not None}
        actual = self.model_copy(update=update)
        if actual.eval_split in actual.train_splits and config.train is None and config.test is None:
            raise DataError(f"data.eval_split: '{actual.eval_split}' is also trained on; name two different splits")
        return actual

    def on_the_hub(self, config: DataConfig) -> dict[str, Any]:
        """Settings that differ where rows come from the hub."""
        return {}

    def load(self, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Any, Any]:
        def choose(there: list[str], where: str) -> tuple[str, ...]:
            users = require_columns(where, (user_column,), there, "set partition.column") if user_column else ()
            return tuple(dict.fromkeys((*self.columns(there, where), *users)))

        train_tables, test_tables = read_tables(self, config, choose)
        tables = [*train_tables, *test_tables]
        parts = self.rows_of(tables, config)
        if user_column:
            parts = [_with_users(rows, table, user_column) for rows, table in zip(parts, tables, strict=True)]
        return self.with_test(parts[: len(train_tables)], parts[len(train_tables) :], config, seed)

    def with_test(
        self, train_parts: Sequence[Any], test_parts: Sequence[Any], config: DataConfig, seed: int
    ) -> tuple[Any, Any]:
        """The (train, test) rows of some parts; without test parts, rows are held out."""
        train = type(train_parts[0]).join(train_parts)
        if test_parts:
            return train, type(train_parts[0]).join(test_parts)
        fraction = self.test_fraction if config.test_fraction is None else config.test_fraction
        groups = train.users if train.users is not None else self.strata(train)
        kept, tested = at_random(len(train), fraction, seed) if groups is None else held_out(groups, fraction, seed)
        return train.take(kept), train.take(tested)

    def stamps(self, config: DataConfig) -> tuple[Stamp, ...]:
        return stamps_of(self, config)

    def refuse_without_effect(self, config: DataConfig) -> None:
        super().refuse_without_effect(config)
        if config.reads_files and config.revision:
            unused, reason = ["revision"], "the rows come from files and not from the hub"
        elif config.reads_files:
            unused = ["train_splits"] if config.train and config.train_splits else []
            unused += ["eval_split"] if config.test and config.eval_split else []
            reason = "the file is named already"
        else:
            unused, reason = config.given(*FILES_ONLY), "without data.path the rows come from the hub"
        if unused:
            raise DataError(f"data.{unused[0]}: has no effect, because {reason}; remove it")
        holds_out = not (self.eval_split or config.eval_split or config.test)
        if "test_fraction" in config.given("test_fraction") and not holds_out and not self.is_old_fraction(config):
            raise DataError("data.test_fraction: has no effect, because the test rows are named already; remove it")
        if self.hub is None and not config.reads_files:
            raise DataError(f"task {self.name}: is not on the hub; set data.path=FOLDER with local files")

    def _why_idle(self, name: str) -> str:
        idle = super()._why_idle(name)
        return idle if self.ignores not in idle else f"task {self.name} is of kind {self.kind}; remove it"

    @model_validator(mode="after")
    def _splits_differ(self) -> Self:
        if self.eval_split in self.train_splits:
            raise ValueError(
                f"eval_split {self.eval_split!r} is among train_splits; evaluate on rows that are not trained on"
            )
        if self.hub is None and self.hub_config is not None:
            raise ValueError("hub_config has no effect without hub; remove it")
        refuse_twice(self, "train_splits")
        return self


class HubDifferences(BaseModel, frozen=True, extra="forbid"):
    """Columns and splits of the hub's copy, if they differ from the task's; null: the same."""

    text_columns: tuple[str, ...] | None = Field(None, description="the hub's names of the text columns")
    label_column: str | None = Field(None, description="the hub's name of the label column")
    train_splits: tuple[str, ...] | None = Field(None, description="the hub's splits of training rows")
    eval_split: str | None = Field(None, description="the hub's split of test rows")


class LabelledTexts(FromTables, Texts):
    """Tables with one column of text, or two for pairs, and a column of labels."""

    hub_differs: HubDifferences = HubDifferences()
    label_column: str = Field("label", description="column of the labels")

    uses: ClassVar[tuple[str, ...]] = (*FromTables.uses, "text_columns", "label_column", "drop_missing")

    def columns(self, there: list[str], where: str) -> tuple[str, ...]:
        return require_columns(where, tuple(dict.fromkeys((*self.text_columns, self.label_column))), there)

    @property
    def needed(self) -> tuple[str, ...]:
        """Columns in which each row has a value; `data.drop_missing` leaves other rows out."""
        return (*self.text_columns, self.label_column)

    def complete(self, table: Table, config: DataConfig) -> tuple[Any, NDArray[np.int64] | None]:
        """The table and None; with `data.drop_missing` the rows that have what is `needed`, and their numbers."""
        if not config.drop_missing:
            return table.content, None
        rows = complete_rows(table.content, self.needed, table.where)
        return table.content.take(rows), rows

    def effective(self, config: DataConfig) -> Self:
        actual = super().effective(config)
        if len(actual.text_columns) != len(self.text_columns):
            raise DataError(
                f"data.text_columns: {list(actual.text_columns)}, but task {self.name} needs "
                f"{len(self.text_columns)} (its own are {list(self.text_columns)})"
            )
        if actual.label_column in actual.text_columns:
            raise DataError(
                f"data.label_column: '{actual.label_column}' is a text column too, so a model would read the answer; "
                "name two different columns with data.text and data.label"
            )
        return actual

    def on_the_hub(self, config: DataConfig) -> dict[str, Any]:
        return {} if config.reads_files else self.hub_differs.model_dump(exclude_none=True)

    @model_validator(mode="after")
    def _columns_fit(self) -> Self:
        if self.hub is None and self.hub_differs != HubDifferences():
            raise ValueError("hub_differs has no effect without hub; remove it")
        other = self.hub_differs.text_columns
        if other is not None and len(other) != len(self.text_columns):
            raise ValueError(
                f"hub_differs.text_columns has {len(other)} columns, text_columns {len(self.text_columns)}"
            )
        return self


def _with_users(rows: Any, table: Table, column: str) -> Any:
    """The rows with the values of a column of their table."""
    where = f"{table.where}, column '{column}'"
    return replace(rows, users=values_of(table.content[column], where, rows.origin.row))
