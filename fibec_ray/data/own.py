"""Looks at a user's own files and works out the task: columns, classes, and which file has the test rows.

Called when an experiment names files but no task. The answers go into the experiment, so that a run keeps them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fibec_ray.data import guess
from fibec_ray.data.columns import values_of
from fibec_ray.data.guess import Roles
from fibec_ray.data.image_folder import has_class_folders
from fibec_ray.data.own_answers import OwnAnswers, OwnClasses
from fibec_ray.data.readers import format_of, read_table
from fibec_ray.data.settings import TEST_FRACTION, DataConfig
from fibec_ray.data.source import nearby
from fibec_ray.data.splits import TEST, TRAIN, data_files, listed, nearest_file, split_of, test_beside, with_shards
from fibec_ray.errors import DataError, did_you_mean
from fibec_ray.files.storage import is_url


@dataclass(frozen=True)
class OwnData:
    """What the files say. The paths are as the `data` section writes them."""

    title: str
    """the data set's name, from its path"""
    path: str | None
    train: str | None
    test: str | None
    """None: rows are held out"""
    columns: tuple[str, ...]
    """of the text or texts, or of the images"""
    label_column: str
    settings: dict[str, Any]
    """of the task, such as label_names"""
    num_train: int
    """training rows, after the test rows are held out"""
    num_users: int
    """different values in the column of users; 0 without one"""


@dataclass(frozen=True)
class _Files:
    path: str | None
    train: str | None
    tests: tuple[str, ...]
    """candidates, the best first; the first with labels is taken. Empty: rows are held out"""


ReadTable = Callable[[Path, DataConfig, Roles | None, str | None], tuple[Any, Roles]]
"""(file, settings, roles of its columns, column of users) -> its columns of labels and users, and the roles.

None: the roles of the first file's columns are not known yet.
"""


def examine(
    config: DataConfig,
    user_column: str | None = None,
    label_names: Sequence[str] = (),
    read: ReadTable | None = None,
    answers: OwnAnswers | None = None,
) -> OwnData:
    """The columns, classes and test rows of a user's own files.

    user_column: the column of users that the partition deals by. label_names: set by the user; empty: from the data.
    read: reads a table; None: one of texts. answers: what labels are; None: classes. Raises DataError with a question
    where a column cannot be told, and for files that cannot be read.
    """
    try:
        return _examined(config, user_column, read or _table, answers or OwnClasses(label_names))
    except OSError as error:  # no permission, a path that is too long, a pipe
        where = config.path or config.train
        raise DataError(f"data.path: {where}: cannot be read ({error.strerror or error}); give another path") from error


def _examined(config: DataConfig, user_column: str | None, read: ReadTable, answers: OwnAnswers) -> OwnData:
    with nearby(config.path) as local:
        near = config.model_copy(update={"path": local})
        found = _files(near)
        roles = None
        columns, users, num_rows = [], set[str](), 0
        for path in _paths(found.path, found.train):
            table, roles = read(path, near, roles, user_column)
            columns.append(_labels(table, roles, path, answers))
            num_rows += table.num_rows
            if user_column:
                users |= set(values_of(table[user_column], f"{path}, column '{user_column}'"))
        assert roles is not None and roles.label is not None
        test, test_columns = _first_labelled(found, near, roles, read, answers)
        settings = answers.settings([*columns, *test_columns], config.drop_missing)
    if test is None:
        num_rows -= max(1, round((config.test_fraction or TEST_FRACTION) * num_rows))
    written = _back(found.path, local, config.path) if local and config.path and local != config.path else found.path
    title = title_of(written, found.train)
    return OwnData(title, written, found.train, test, roles.texts, roles.label, settings, max(num_rows, 0), len(users))


def _back(path: str | None, local: str, remote: str) -> str:
    """The path as the user would write it. local: the expanded path or the copy of a URL, `remote`."""
    below = Path(path or local).relative_to(local).as_posix()
    return remote if below == "." else f"{remote.rstrip('/')}/{below}"


def _files(config: DataConfig) -> _Files:
    given = (config.test,) if config.test else None
    if config.path is None:
        return _Files(None, config.train, given or ())
    base = Path(config.path)
    if not base.exists():
        raise DataError(f"data.path: {base}: no such file or folder; {nearest_file(base)}")
    if config.train:
        return _Files(config.path, config.train, given or ())
    if base.is_file():
        beside = () if given else tuple(str(path) for path in test_beside(base))
        return _Files(config.path, None, given or beside)
    _refuse_class_folders(base)
    if not data_files(base) and has_class_folders(base):
        raise DataError(
            f"data.path: {base}: has a folder of images per class; set task.kind=images, and a backbone that reads "
            "images, such as backbone={kind: cnn} (docs/images.md)"
        )
    if (split_folders := _split_folders(base)) is not None:
        train_name, test_names = split_folders
        return _Files(config.path, train_name, given or test_names)
    folder = _with_data(base)
    there = data_files(folder)
    train = _train_file(folder, there)
    tests = [path.name for word in TEST for path in there if split_of(path) == word != split_of(train)]
    return _Files(str(folder), train.name, given or tuple(tests) or tuple(path.name for path in test_beside(train)))


def _split_folders(folder: Path) -> tuple[str, tuple[str, ...]] | None:
    """The training file and the test files of `train/` and `test/` with one file each; None without such folders."""
    folders = {path.name.casefold(): path for path in sorted(folder.iterdir()) if path.is_dir()}
    only = {name: found[0] for name, path in folders.items() if len(found := data_files(path)) == 1}
    train = next((only[word] for word in TRAIN if word in only), None)
    if train is None or data_files(folder):
        return None
    tests = tuple(str(only[word].relative_to(folder)) for word in TEST if word in only)
    return str(train.relative_to(folder)), tests


def _refuse_class_folders(folder: Path) -> None:
    """Raise DataError for a folder per class with a text in each file, such as pos/1.txt and neg/1.txt."""
    for place in (folder, *(folder / word for word in TRAIN)):
        inside = sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
        texts = {path.name: data_files(path) for path in inside if path.name.casefold() not in (*TRAIN, *TEST)}
        classes = [name for name, found in texts.items() if len(found) > 1 and _are_texts(found)]
        if len(classes) > 1 and _are_texts(data_files(place)):
            raise DataError(
                f"data.path: {place}: has a folder per class ({', '.join(classes[:12])}) and a file per text, which "
                "cannot be read; make one CSV file with the columns text and label: docs/own-data.md shows how"
            )


def _are_texts(found: Sequence[Path]) -> bool:
    return all(path.suffix == ".txt" for path in found)


def _with_data(folder: Path) -> Path:
    """The folder itself, or the one folder in it with data files: the hub's repositories have `data/`."""
    if data_files(folder):
        return folder
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and data_files(path)]
    if len(inside) == 1:
        return inside[0]
    if inside:
        raise DataError(
            f"data.path: {folder}: has no data files, and several of its folders have ("
            f"{', '.join(path.name for path in inside[:12])}); give one of them, such as data.path={inside[0]}"
        )
    raise DataError(
        f"data.path: {folder}: has no .csv, .tsv, .txt, .json, .jsonl or .parquet file; it holds {listed(folder)}"
    )


def _train_file(folder: Path, there: Sequence[Path]) -> Path:
    named = [path for word in TRAIN for path in there if split_of(path) == word]
    if not named:
        named = [path for path in there if test_beside(path)]
    if not named and len({split_of(path) for path in there}) == 1:
        return there[0]
    if len(named) == 1 or (named and split_of(named[0]) == split_of(named[1])):
        return named[0]
    names = [path.name for path in there]
    raise DataError(
        f"data.path: {folder}: cannot tell which file has the training rows ({', '.join(names[:12])}); name it with "
        f"data.train={names[0]}, and the test file if there is one with data.test=FILE"
    )


def _paths(path: str | None, name: str | None) -> list[Path]:
    """Files of a path and of a name relative to it."""
    base = Path(path or "").expanduser()
    return with_shards(base / Path(name).expanduser() if name else base)


def _first_labelled(
    found: _Files, config: DataConfig, roles: Roles, read: ReadTable, answers: OwnAnswers
) -> tuple[str | None, list[Any]]:
    """The first test file with labels, and the labels. Published test sets often have none: those are passed over.

    Whatever is wrong with a file that the user named is an error.
    """
    named = config.test is not None
    base = None if found.path is None or Path(found.path).is_file() else found.path
    for name in found.tests:
        try:
            columns = []
            for path in _paths(base, name):
                table, _ = read(path, config, roles, None)
                columns.append(_labels(table, roles, path, answers))
        except DataError:
            if named:
                raise
            continue
        if named or not all(map(answers.is_unlabelled, columns)):
            return name, columns
    return None, []


def _table(path: Path, config: DataConfig, roles: Roles | None, user_column: str | None) -> tuple[Any, Roles]:
    """The label column of a file, and that of users. roles: None for the first file, whose columns are found."""
    others = [user_column] if user_column else []
    there: list[str] = []
    known = roles or Roles((), None)

    def choose(columns: list[str]) -> tuple[str, ...]:
        nonlocal known
        there[:] = columns
        for column in (*(config.text_columns or ()), *([config.label_column] if config.label_column else ())):
            if column not in columns:
                hint = did_you_mean(column, columns, "set data.text or data.label to a column's name")
                raise DataError(f"{path}: no column {column!r}; {hint}")
        for column in others:
            if column not in columns:
                raise DataError(f"partition.column: {path} has no column {column!r}; {did_you_mean(column, columns)}")
        if roles is None:
            known = guess.by_names(columns, config.text_columns, config.label_column, others)
        if known.texts and known.label:
            if known.label not in columns:
                raise DataError(f"{path}: no column {known.label!r}; it has {', '.join(columns)}")
            return (known.label, *others)
        return tuple(column for column in columns if columns.count(column) == 1 and column.strip())

    table = read_table(path, config.layout, choose)
    if not (known.texts and known.label):
        known = guess.by_content(table, known, others)
        guess.refuse_unknown(
            known, there, str(path), config.header and format_of(path, config.layout) in ("csv", "tsv")
        )
    return table, known


def _labels(table: Any, roles: Roles, path: Path, answers: OwnAnswers) -> Any:
    assert roles.label is not None
    return answers.read(table, roles.label, f"{path}, column '{roles.label}'")


def title_of(path: str | None, train: str | None) -> str:
    """The data set's name, from its path.

    reviews.csv -> 'reviews'; reviews/train-00000-of-00004.parquet, reviews/data/train.csv -> 'reviews'
    """
    place = Path(str(path or "").rstrip("/") if is_url(path or "") else Path(path or ".").absolute())
    file = place if train is None else place / Path(train).name
    splits = "|".join((*TRAIN, *TEST))
    words = re.sub(rf"(^|[^a-z])({splits})([^a-z]|$)", " ", split_of(file)).strip(" -_.")
    folders = [parent.name for parent in file.parents if parent.name not in ("data", "")]
    name = Path(file.name).name.split(".")[0] if words and words == split_of(file) else words or (folders or [""])[0]
    return re.sub(r"[^\w .+-]", "-", name).strip(" .-")[:60] or "own-data"
