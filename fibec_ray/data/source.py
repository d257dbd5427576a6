"""Reads the tables of a data set, from local files, a URL or the hub."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Protocol

from fibec_ray.data import hub
from fibec_ray.data.described import OnHub, Splits
from fibec_ray.data.readers import read_table
from fibec_ray.data.settings import DataConfig
from fibec_ray.data.splits import files
from fibec_ray.errors import DataError
from fibec_ray.files.storage import Storage, is_url


class Table(NamedTuple):
    """The chosen columns of one file or split."""

    content: Any
    """a pyarrow.Table"""
    where: str
    """the file or split, for messages"""


class TableSet(OnHub, Splits, Protocol):
    """A data set of tables."""


Chooser = Callable[[list[str], str], tuple[str, ...]]
"""(names of a table's columns, its place for messages) -> the columns to read; raises DataError"""


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


def read_tables(task: TableSet, config: DataConfig, choose: Chooser) -> tuple[list[Table], list[Table]]:
    """The tables of training rows and of test rows; no test tables: rows are held out.

    Raises DataError for files, splits and columns that are not there or cannot be read.
    """
    if not config.reads_files:
        train, test = task.train_splits, (task.eval_split,) if task.eval_split else ()
        return [_of_hub(task, split, config, choose) for split in train], [
            _of_hub(task, split, config, choose) for split in test
        ]
    with nearby(config.path) as path:
        train_files, test_files = files(task, config.model_copy(update={"path": path}))
        return [_of_file(each, config, choose) for each in train_files], [
            _of_file(each, config, choose) for each in test_files
        ]


def _of_file(path: Path, config: DataConfig, choose: Chooser) -> Table:
    return Table(read_table(path, config.layout, lambda there: choose(there, str(path))), str(path))


def _of_hub(task: TableSet, split: str, config: DataConfig, choose: Chooser) -> Table:
    where = hub.name_of(task, split, config.revision)
    return Table(hub.load_columns(task, split, config.revision, lambda there: choose(there, where)), where)
