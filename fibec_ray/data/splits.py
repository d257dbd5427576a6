"""Finds the files of a data set: splits, Hugging Face shards, and the test rows beside the training rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from fibec_ray.data.described import Splits
from fibec_ray.data.readers import SUFFIXES, suffix_of
from fibec_ray.data.settings import DataConfig
from fibec_ray.errors import DataError

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\..+)")
_NOT_DATA = ("dataset_info", "dataset_infos", "dataset_dict", "state", "metadata", "config")
TRAIN = ("train", "training")
TEST = ("test", "testing", "validation", "valid", "val", "dev", "eval")
"""Names of splits with rows to evaluate on, the best first."""


def files(task: Splits, config: DataConfig) -> tuple[list[Path], list[Path]]:
    """The training files and the test files that `path`, `train` and `test` name; no test files: rows are held out.

    Raises DataError for files that do not exist, and for a test file that is also trained on.
    """
    held_out = task.eval_split is None and config.test is None
    base = Path(config.path or "").expanduser()
    if not base.exists():
        raise DataError(
            f"data.path: {base}: no such file or folder; {nearest_file(base)} "
            f"(a folder should hold {task.eval_split or 'train'}.parquet or the like)"
        )
    if base.is_file():
        if config.train:
            raise DataError(
                f"data.train: has no effect, because data.path names the file {base}; remove one of the two"
            )
        if not config.test and not held_out:
            raise DataError(
                f"data.path: {base} is one file; name the test rows with data.test=FILE, or set task.eval_split=null "
                "to hold some of its rows out"
            )
        return _apart(with_shards(base), with_shards(Path(config.test).expanduser()) if config.test else [])
    if config.path is None and not (config.train and (config.test or held_out)):
        missing = "test" if config.train else "train"
        raise DataError(f"data.{missing}: not set; name both data.train and data.test, or set data.path=FOLDER")
    splits = [split_files(base, split, config) for split in (() if config.train else task.train_splits)]
    train = (
        with_shards(base / Path(config.train).expanduser())
        if config.train
        else [path for split in splits for path in split]
    )
    if config.test:
        return _apart(train, with_shards(base / Path(config.test).expanduser()))
    return _apart(train, [] if task.eval_split is None else split_files(base, task.eval_split, config))


def with_shards(path: Path) -> list[Path]:
    """The file itself, or all shards of `train-00000-of-00004.parquet`. Raises DataError if a shard is missing."""
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    names = [f"{match['stem']}-{number:05}-of-{count:05}{match['suffix']}" for number in range(count)]
    shards = [path.with_name(name) for name in names]
    if missing := [shard.name for shard in shards if not shard.is_file()]:
        raise DataError(
            f"{path.parent}: {len(missing)} of the {count} files of {match['stem']} are missing, the first is "
            f"{missing[0]}; put all of them there"
        )
    return shards


def split_files(folder: Path, split: str, config: DataConfig) -> list[Path]:
    """`train.csv`, or the shards of `train`. Raises DataError if the folder has neither."""
    suffixes = [suffix for name in SUFFIXES if config.format in ("auto", name) for suffix in SUFFIXES[name]]
    for suffix in suffixes:
        if (path := folder / f"{split}{suffix}").is_file():
            return [path]
        if shards := sorted(folder.glob(f"{split}-00000-of-*{suffix}")):
            return with_shards(shards[0])
    raise DataError(
        f"data.path: {folder}: no file {split}{{{','.join(suffixes)}}}; the folder holds {listed(folder)}; "
        "set data.train_splits, data.eval_split, data.train or data.test"
    )


def split_of(path: Path) -> str:
    """The split that a file name gives: 'train' for Train.csv, train-00000-of-00004.parquet and train.jsonl.gz."""
    match = _SHARD.fullmatch(path.name)
    stem = match["stem"] if match else path.name.removesuffix(suffix_of(path))
    return stem.casefold()


def test_beside(train: Path) -> list[Path]:
    """Files beside the training file that may hold its test rows, best first.

    `test.csv` beside `train.csv`, `sst2_test.csv` beside `sst2_train.csv`.
    """
    own = split_of(train)
    pattern = next((word for word in TRAIN if re.search(rf"(^|[^a-z]){word}([^a-z]|$)", own)), None)
    if pattern is None:
        return []
    there = {split_of(path): path for path in reversed(data_files(train.parent))}
    wanted = [re.sub(rf"(^|[^a-z]){pattern}([^a-z]|$)", rf"\g<1>{word}\g<2>", own) for word in TEST]
    return [there[name] for name in wanted if name in there]


def data_files(folder: Path) -> list[Path]:
    """Files of a folder that may hold rows; of a sharded split the first shard."""
    known = [suffix for suffixes in SUFFIXES.values() for suffix in suffixes]
    found = []
    for path in sorted(folder.iterdir()):
        match = _SHARD.fullmatch(path.name)
        first = match is None or int(match["number"]) == 0
        hidden = path.name.startswith((".", "_"))
        if suffix_of(path) in known and path.is_file() and first and not hidden and split_of(path) not in _NOT_DATA:
            found.append(path)
    return found


def nearest_file(path: Path) -> str:
    """'did you mean reviews.csv?', or general advice."""
    try:
        there = [each.name for each in path.absolute().parent.iterdir() if not each.name.startswith(".")]
    except OSError:
        return "give a file of rows, or a folder with a train.csv"
    close = get_close_matches(path.name, there, n=1)
    return f"did you mean {path.with_name(close[0])}?" if close else "give a file of rows, or a folder with a train.csv"


def listed(folder: Path) -> str:
    """Names of a folder's first files, for messages."""
    return ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"


def _apart(train: Sequence[Path], test: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    trained = [path.resolve() for path in train]
    for path in test:
        if path.resolve() in trained:
            raise DataError(f"data.test: {path} is also trained on; name two different files")
    return list(train), list(test)
