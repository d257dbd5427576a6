"""Loads a task's rows: from local files, the hub, or the embedded sets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel, Field, PositiveInt, ValidationInfo, field_validator

from fibec_ray.data import hub, points, synthetic
from fibec_ray.data.columns import class_names, texts_of
from fibec_ray.data.examples import Examples, Origin, Points
from fibec_ray.data.exercises import ExerciseSettings
from fibec_ray.data.instructions import Columns
from fibec_ray.data.labels import LabelColumn, Reading, class_ids, read_labels
from fibec_ray.data.points import RegressionSettings
from fibec_ray.data.readers import SUFFIXES, Format, read_table
from fibec_ray.data.synthetic import SyntheticSettings
from fibec_ray.data.tasks import Task
from fibec_ray.errors import DataError
from fibec_ray.files.storage import Storage, is_url, refuse_secrets


@contextmanager
def nearby(path: str | None) -> Iterator[str | None]:
    """The path itself, or for a URL that of a copy which goes when the block ends: the run keeps what it read.

    Raises StorageError, or DataError if there is nothing.
    """
    if path is None or not is_url(path):
        yield path
        return
    storage = Storage(path)
    if not storage.exists():
        raise DataError(f"data.path: {path}: no such file or folder; give the URL of a folder with train.parquet")
    with TemporaryDirectory(prefix="fibec-data-") as folder:
        copy = Path(folder) / "data" / storage.name
        if storage.is_folder():
            storage.download(copy)
        else:
            storage.download_file(copy)
        yield str(copy)


_FILE_SETTINGS = ("path", "train", "test")
_LAYOUT_SETTINGS = ("train_splits", "eval_split", "text_columns", "label_column")
_OF_CLASSES = ("text_columns", "label_column", "labels")
MAX_LENGTH = 64
TEST_FRACTION = 0.1


class DataConfig(BaseModel, frozen=True, extra="forbid"):
    """The `data` section of an experiment. None leaves the choice to the task."""

    path: str | None = Field(
        None,
        description="folder that holds SPLIT.parquet (or .csv .tsv .jsonl), or the train file; a path or a URL (s3://, "
        "gs://, file://)",
    )
    format: Format = "auto"
    train: str | None = Field(None, description="file of the training rows, relative to path where path is a folder")
    test: str | None = Field(None, description="file of the test rows, relative to path where path is a folder")
    revision: str | None = Field(None, min_length=1, description="of the data set on the hub: a commit, tag or branch")
    train_splits: tuple[str, ...] | None = Field(None, min_length=1)
    eval_split: str | None = None
    text_columns: tuple[str, ...] | None = Field(None, min_length=1, max_length=2)
    label_column: str | None = None
    labels: Reading = Field(
        "auto",
        description="how whole numbers in label_column are meant: names (of classes), ids (positions in the task's "
        "label_names), auto (names where each of them is one, else ids)",
    )
    columns: Columns = Field(Columns(), description="of instructions; what is set goes before the task's own")
    test_fraction: float = Field(
        TEST_FRACTION, gt=0, lt=1, description="of the rows, drawn, where a task of instructions names no test rows"
    )
    max_train: PositiveInt | None = Field(None, description="seeded subset of the training rows; None: all")
    max_test: PositiveInt | None = Field(None, description="seeded subset of the test rows; None: all")
    max_length: int = Field(MAX_LENGTH, ge=4, description="tokens per sample, special tokens included")
    synthetic: SyntheticSettings = SyntheticSettings()
    regression: RegressionSettings = RegressionSettings()
    exercises: ExerciseSettings = ExerciseSettings()

    @field_validator(*_FILE_SETTINGS)
    @classmethod
    def _no_secrets(cls, value: str | None, info: ValidationInfo) -> str | None:
        refuse_secrets(value, f"data.{info.field_name}")
        return value

    @property
    def reads_files(self) -> bool:
        return any(getattr(self, name) is not None for name in _FILE_SETTINGS)


def load_points(task: Task, config: DataConfig, seed: int) -> tuple[Points, Points]:
    """The (train, test) rows of a task without text. Raises DataError for settings without effect."""
    effective_task(task, config)
    if task.kind == "digits":
        train, test = points.load_digits(seed)
    else:
        settings = config.regression
        train = points.generate(settings.num_train, seed, "train", settings)
        test = points.generate(settings.num_test, seed, "test", settings)
    return train.at_most(config.max_train, seed, "train"), test.at_most(config.max_test, seed, "test")


def load(task: Task, config: DataConfig, seed: int) -> tuple[Examples, Examples]:
    """The (train, test) rows of a task of text. Raises DataError for each setting, file, column or label that does not
    fit."""
    actual = effective_task(task, config)
    if task.kind == "synthetic":
        settings = config.synthetic
        train = synthetic.generate(settings.num_train, seed, "train", settings)
        test = synthetic.generate(settings.num_test, seed, "test", settings)
    elif config.reads_files:
        with nearby(config.path) as path:
            here = config.model_copy(update={"path": path})
            train_files, test_file = files(actual, here)
            assert test_file is not None, "a task with classes names its test rows"
            parts = [_read_file(each, actual, here) for each in (*train_files, test_file)]
        train, test = _apart_again(parts, actual, config)
    else:
        splits = (*actual.train_splits, actual.eval_split or "")
        train, test = _apart_again([_read_hub(split, actual, config) for split in splits], actual, config)
    return train.at_most(config.max_train, seed, "train"), test.at_most(config.max_test, seed, "test")


def effective_task(task: Task, config: DataConfig) -> Task:
    """The task as this run sees it: the source's columns and splits, and the classes that the generator makes."""
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
        unused = _given(config, *_FILE_SETTINGS, *_LAYOUT_SETTINGS, "format", "labels", "revision")
        reason = f"task {task.name} makes its own rows"
    elif task.answers_in_text and _given(config, *_OF_CLASSES):
        unused = _given(config, *_OF_CLASSES)
        reason = f"task {task.name} has instructions and no labels (their columns: data.columns)"
    elif config.reads_files and config.revision:
        unused, reason = ["revision"], "the rows come from files and not from the hub"
    elif config.reads_files:
        unused = ["train_splits"] if config.train and config.train_splits else []
        unused += ["eval_split"] if config.test and config.eval_split else []
        reason = "the file is named already"
    else:
        unused = _given(config, "format")
        reason = "without data.path the rows come from the hub"
    if unused:
        raise DataError(f"data.{unused[0]}: has no effect, because {reason}; remove it")
    held_out = task.kind == "instructions" and not (task.eval_split or config.eval_split or config.test)
    if config.test_fraction != TEST_FRACTION and not held_out:
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


def _given(config: DataConfig, *names: str) -> list[str]:
    """Those that are not at their defaults."""
    return [name for name in names if getattr(config, name) != DataConfig.model_fields[name].default]


def files(task: Task, config: DataConfig) -> tuple[list[Path], Path | None]:
    """The training files and the test file that `path`, `train` and `test` point at; None for rows that are held out.

    Raises DataError for what is not there, and for a test file that is also trained on.
    """
    held_out = task.eval_split is None and config.test is None
    base = Path(config.path) if config.path else Path()
    if not base.exists():
        raise DataError(
            f"data.path: {base}: no such file or folder; give a folder with {task.eval_split or 'train'}.parquet "
            "or the like"
        )
    if base.is_file():
        if config.train:
            raise DataError(
                f"data.train: has no effect, because data.path names the file {base}; remove one of the two"
            )
        if not config.test and not held_out:
            raise DataError(f"data.path: {base} is one file; name the test rows with data.test=FILE or give a folder")
        return _apart([base], Path(config.test) if config.test else None)
    if config.path is None and not (config.train and (config.test or held_out)):
        missing = "test" if config.train else "train"
        raise DataError(f"data.{missing}: not set; name both data.train and data.test, or set data.path=FOLDER")
    train = [base / config.train] if config.train else [_split_file(base, split, config) for split in task.train_splits]
    if config.test or task.eval_split is None:
        return _apart(train, base / config.test if config.test else None)
    return _apart(train, _split_file(base, task.eval_split, config))


def _apart(train: list[Path], test: Path | None) -> tuple[list[Path], Path | None]:
    if test is not None and test.resolve() in [path.resolve() for path in train]:
        raise DataError(f"data.test: {test} is also trained on; name two different files")
    return train, test


def _split_file(folder: Path, split: str, config: DataConfig) -> Path:
    suffixes = [suffix for name in SUFFIXES if config.format in ("auto", name) for suffix in SUFFIXES[name]]
    for suffix in suffixes:
        if (path := folder / f"{split}{suffix}").is_file():
            return path
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
    raise DataError(
        f"data.path: {folder}: no file {split}{{{','.join(suffixes)}}}; the folder holds {there}; "
        "set data.train_splits, data.eval_split, data.train or data.test"
    )


@dataclass(frozen=True)
class _Read:
    """The rows of one file or split, before it is known how its labels are meant."""

    texts: list[list[str]]
    labels: LabelColumn
    where: str


def _read_file(path: Path, task: Task, config: DataConfig) -> _Read:
    table = read_table(path, config.format, (*task.text_columns, task.label_column))
    return _read(table, class_names(table.schema.metadata, task.label_column), task, str(path))


def _read_hub(split: str, task: Task, config: DataConfig) -> _Read:
    table, names = hub.load_split(task, split, config.revision)
    return _read(table, names, task, hub.name_of(task, split, config.revision))


def _read(table: Any, names: list[str] | None, task: Task, where: str) -> _Read:
    texts = [texts_of(table[column], f"{where}, column '{column}'") for column in task.text_columns]
    labels = read_labels(table[task.label_column], names, task, f"{where}, column '{task.label_column}'")
    return _Read(texts, labels, where)


def _apart_again(parts: list[_Read], task: Task, config: DataConfig) -> tuple[Examples, Examples]:
    """The (train, test) rows. parts: the last one has the test rows."""
    ids = class_ids([part.labels for part in parts], task, config.labels)
    found = [
        Examples(
            part.texts[0],
            part.texts[1] if len(part.texts) == 2 else None,
            labels,
            origin=Origin.of(part.where, len(labels)),
        )
        for part, labels in zip(parts, ids, strict=True)
    ]
    return Examples.join(found[:-1]), found[-1]
