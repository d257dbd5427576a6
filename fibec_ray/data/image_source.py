"""Reads images that are not in tables: a folder per class, or numpy's arrays."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fibec_ray.data.described import Splits
from fibec_ray.data.image_arrays import Labelled, is_arrays, read_arrays
from fibec_ray.data.image_folder import class_folders, has_class_folders, split_folders
from fibec_ray.data.labels import LabelColumn, Value
from fibec_ray.data.pixels import Source, as_bytes
from fibec_ray.data.settings import DataConfig
from fibec_ray.data.splits import listed
from fibec_ray.errors import DataError


class LabelledImages(NamedTuple):
    """Images and labels of one split, before it is known what the labels mean."""

    sources: list[Source]
    labels: LabelColumn


Parts = tuple[list[LabelledImages], list[LabelledImages]]
"""(train, test); no test parts: rows are held out"""


def in_tables(path: str | None) -> bool:
    """True if images are in tables: Parquet, JSON or CSV. path: of local files; None: the rows are on the hub."""
    if path is None:
        return True
    place = Path(path).expanduser()
    return not (place.exists() and (is_arrays(place) or (place.is_dir() and has_class_folders(place))))


def read_images(task: Splits, config: DataConfig) -> Parts:
    """The images of a folder of class folders, or of arrays, in `data.path`. Raises DataError."""
    place = Path(config.path or "").expanduser()
    if is_arrays(place):
        return _of_arrays(place, config)
    train, test = split_folders(place, task.train_splits, task.eval_split)
    if config.train:
        train = [_folder(place, config.train, "train")]
    if config.test:
        test = [_folder(place, config.test, "test")]
    elif task.eval_split is not None and not test:
        raise DataError(
            f"data.path: {place}: no folder of test images; it holds {listed(place)}; name it with data.test=FOLDER, "
            "or set task.eval_split=null to hold some of the images out"
        )
    if both := {each.resolve() for each in train} & {each.resolve() for each in test}:
        raise DataError(f"data.test: {both.pop()} is also trained on; name two different folders")
    return list(map(_of_folder, train)), list(map(_of_folder, test))


def _folder(base: Path, name: str, setting: str) -> Path:
    found = base / Path(name).expanduser()
    if not found.is_dir():
        raise DataError(f"data.{setting}: {found}: no such folder; {base} holds {listed(base)}")
    return found


def _of_folder(folder: Path) -> LabelledImages:
    found = class_folders(folder)
    labels = LabelColumn(list(found.names), found.codes, None, str(folder), "string")
    return LabelledImages(list(found.files), labels)


def _of_arrays(path: Path, config: DataConfig) -> Parts:
    named = [setting for setting in ("train", "test", "train_splits", "eval_split") if config.given(setting)]
    if named:
        raise DataError(
            f"data.{named[0]}: has no effect, because the arrays of {path} say which images are for training; remove it"
        )
    train, test = read_arrays(path)
    return [_labelled(train)], [] if test is None else [_labelled(test)]


def _labelled(found: Labelled) -> LabelledImages:
    images = as_bytes(found.images, found.where)
    values: list[Any] = np.asarray(found.labels).tolist()
    seen: dict[Value, int] = {}
    plain = [value.decode(errors="replace") if isinstance(value, bytes) else value for value in values]
    codes = np.array([seen.setdefault(value, len(seen)) for value in plain], dtype=np.int64)
    labels = LabelColumn(list(seen), codes, None, f"{found.where}, its labels", str(found.labels.dtype))
    return LabelledImages(list(images), labels)
