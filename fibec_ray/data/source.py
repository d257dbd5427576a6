"""Loads the rows of a classification task: from local files, the hub, or the embedded sets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fibec_ray.data import hub, points, synthetic
from fibec_ray.data.columns import class_names, complete_rows, texts_of, values_of
from fibec_ray.data.examples import Examples, Origin, Points
from fibec_ray.data.held_out import held_out
from fibec_ray.data.instructions import Columns
from fibec_ray.data.labels import LabelColumn, class_ids, read_labels
from fibec_ray.data.readers import read_table
from fibec_ray.data.settings import (
    FILE_SETTINGS,
    MAX_LENGTH,
    TEST_FRACTION,
    TEST_FRACTION_INSTRUCTIONS,
    TEXT_FILE_SETTINGS,
    DataConfig,
)
from fibec_ray.data.splits import files
from fibec_ray.data.tasks import Task
from fibec_ray.errors import DataError
from fibec_ray.files.storage import Storage, is_url

_LAYOUT_SETTINGS = ("train_splits", "eval_split", "text_columns", "label_column")
_CLASSES_ONLY = ("text_columns", "label_column", "labels", "drop_missing")
_FILES_ONLY = ("format", *TEXT_FILE_SETTINGS)


@contextmanager
def nearby(path: str | None) -> Iterator[str | None]:
    """The path itself; for a URL the path of a local copy, which is deleted when the block ends.

    Raises StorageError, or DataError if the URL holds nothing.
    """
    if path is None or not is_url(path):
        yield path if path is None else os.path.expanduser(path)
        return
    storage = Storage(path)
    if not storage.exists():
        raise DataError(
            f"data.path: {path}: no such file or folder; give the URL of a file of rows or a folder with train.parquet"
        )
    with TemporaryDirectory(prefix="fibec-data-") as folder:
        copy = Path(folder) / "data" / storage.name
        if storage.is_folder():
            storage.download(copy)
        else:
            storage.download_file(copy)
        yield str(copy)


def load_points(task: Task, config: DataConfig, seed: int) -> tuple[Points, Points]:
    """The (train, test) rows of a task without text. Raises DataError for settings that have no effect."""
    effective_task(task, config)
    if task.kind == "digits":
        train, test = points.load_digits(seed)
    else:
        settings = config.regression
        train = points.generate(settings.num_train, seed, "train", settings)
        test = points.generate(settings.num_test, seed, "test", settings)
    return train.at_most(config.max_train, seed, "train"), test.at_most(config.max_test, seed, "test")


def load(task: Task, config: DataConfig, seed: int, user_column: str | None = None) -> tuple[Examples, Examples]:
    """The (train, test) rows of a classification task.

    user_column: its values become `users`. Raises DataError for each setting, file, column or label that does not fit.
    """
    actual = effective_task(task, config)
    if task.kind == "synthetic":
        settings = config.synthetic
        train = synthetic.generate(settings.num_train, seed, "train", settings)
        test = synthetic.generate(settings.num_test, seed, "test", settings)
    elif config.reads_files:
        with nearby(config.path) as path:
            here = config.model_copy(update={"path": path})
            train_files, test_files = files(actual, here)
            parts = [_read_file(each, actual, here, user_column) for each in (*train_files, *test_files)]
        train, test = _train_and_test(parts, len(train_files), actual, config, seed)
    else:
        splits = (*actual.train_splits, *([actual.eval_split] if actual.eval_split else []))
        parts = [_read_hub(split, actual, config, user_column) for split in splits]
        train, test = _train_and_test(parts, len(actual.train_splits), actual, config, seed)
    return train.at_most(config.max_train, seed, "train"), test.at_most(config.max_test, seed, "test")


def effective_task(task: Task, config: DataConfig) -> Task:
    """The task with the columns and splits of the source, and the classes that the generator makes."""
    _refuse_without_effect(task, config)
    if task.kind == "synthetic":
        if config.synthetic.num_classes > task.num_classes:
            raise DataError(
                f"data.synthetic.num_classes: {config.synthetic.num_classes}, but task {task.name} names "
                f"{task.num_classes}; lower it or add label_names and verbaliser words"
            )
        return task.first_classes(config.synthetic.num_classes)
    if task.kind not in ("text", "instructions"):
        return task
    update: dict[str, Any] = {} if config.reads_files else task.hub_differs.model_dump(exclude_none=True)
    update |= {name: value for name in _LAYOUT_SETTINGS if (value := getattr(config, name)) is not None}
    if task.answers_in_text:
        own = task.format
        columns = own.columns.model_dump() | config.columns.model_dump(exclude_none=True)
        update["instructions"] = own.model_copy(update={"columns": Columns(**columns)})
    if len(update.get("text_columns", task.text_columns)) != len(task.text_columns):
        raise DataError(
            f"data.text_columns: {list(update['text_columns'])}, but task {task.name} needs {len(task.text_columns)} "
            f"(its own are {list(task.text_columns)})"
        )
    actual = task.model_copy(update=update)
    if actual.eval_split in actual.train_splits and config.train is None and config.test is None:
        raise DataError(f"data.eval_split: '{actual.eval_split}' is also trained on; name two different splits")
    return actual


def _refuse_without_effect(task: Task, config: DataConfig) -> None:
    if task.kind not in ("text", "instructions"):
        unused = config.given(*FILE_SETTINGS, *_LAYOUT_SETTINGS, *_FILES_ONLY, "labels", "revision", "drop_missing")
        reason = f"task {task.name} makes its own rows"
    elif task.answers_in_text and config.given(*_CLASSES_ONLY):
        unused = config.given(*_CLASSES_ONLY)
        reason = f"task {task.name} has instructions and no labels (their columns: data.columns)"
    elif config.reads_files and config.revision:
        unused, reason = ["revision"], "the rows come from files and not from the hub"
    elif config.reads_files:
        unused = ["train_splits"] if config.train and config.train_splits else []
        unused += ["eval_split"] if config.test and config.eval_split else []
        reason = "the file is named already"
    else:
        unused = config.given(*_FILES_ONLY)
        reason = "without data.path the rows come from the hub"
    if unused:
        raise DataError(f"data.{unused[0]}: has no effect, because {reason}; remove it")
    holds_out = task.kind in ("text", "instructions") and not (task.eval_split or config.eval_split or config.test)
    if config.test_fraction not in (None, TEST_FRACTION_INSTRUCTIONS) and not holds_out:  # that one is in old runs
        raise DataError("data.test_fraction: has no effect, because the test rows are named already; remove it")
    if config.columns != Columns() and task.kind != "instructions":
        raise DataError(f"data.columns: has no effect, because task {task.name} is of kind {task.kind}; remove it")
    embedded = {
        "synthetic": ("synthetic", config.synthetic),
        "regression": ("regression", config.regression),
        "instructions": ("exercises", config.exercises),
    }
    for name, (kind, settings) in embedded.items():
        if task.kind != kind and settings != type(settings)():
            raise DataError(
                f"data.{kind}: has no effect, because task {task.name} is of kind {task.kind}; remove it, or set "
                f"task={name}"
            )
    if not task.is_text and config.max_length != MAX_LENGTH:
        raise DataError(f"data.max_length: has no effect, because task {task.name} has no text; remove it")
    if task.kind in ("text", "instructions") and task.hub is None and not config.reads_files:
        raise DataError(f"task {task.name}: is not on the hub; set data.path=FOLDER with local files")


@dataclass(frozen=True)
class _Read:
    """The rows of one file or split, before it is known what its labels mean."""

    texts: list[list[str]]
    labels: LabelColumn
    users: list[str] | None
    origin: Origin


def _read_file(path: Path, task: Task, config: DataConfig, user_column: str | None) -> _Read:
    wanted = [*task.text_columns, task.label_column, *([user_column] if user_column else [])]
    table = read_table(path, config.layout, tuple(dict.fromkeys(wanted)))
    return _read(table, class_names(table.schema.metadata, task.label_column), task, config, user_column, str(path))


def _read_hub(split: str, task: Task, config: DataConfig, user_column: str | None) -> _Read:
    table, names = hub.load_split(task, split, config.revision, user_column)
    return _read(table, names, task, config, user_column, hub.name_of(task, split, config.revision))


def _read(
    table: Any, names: list[str] | None, task: Task, config: DataConfig, user_column: str | None, where: str
) -> _Read:
    rows = complete_rows(table, (*task.text_columns, task.label_column), where) if config.drop_missing else None
    origin = Origin.of(where, table.num_rows, rows)
    table = table if rows is None else table.take(rows)
    texts = [texts_of(table[column], f"{where}, column '{column}'") for column in task.text_columns]
    labels = read_labels(table[task.label_column], names, task, f"{where}, column '{task.label_column}'")
    users = values_of(table[user_column], f"{where}, column '{user_column}'") if user_column else None
    return _Read(texts, labels, users, origin)


def _train_and_test(
    parts: list[_Read], num_train: int, task: Task, config: DataConfig, seed: int
) -> tuple[Examples, Examples]:
    """parts: num_train of training rows, then those of test rows; if there are none, rows are held out."""
    ids = class_ids([part.labels for part in parts], task, config.labels)
    found = [
        Examples(
            part.texts[0],
            part.texts[1] if len(part.texts) == 2 else None,
            labels,
            users=part.users,
            origin=part.origin,
        )
        for part, labels in zip(parts, ids, strict=True)
    ]
    train = Examples.join(found[:num_train])
    if len(found) > num_train:
        return train, Examples.join(found[num_train:])
    fraction = TEST_FRACTION if config.test_fraction is None else config.test_fraction
    kept, tested = held_out(train.labels if train.users is None else train.users, fraction, seed)
    return train.take(kept), train.take(tested)
