"""Finds images that are sorted into a folder per class.

Either one level, `cat/1.png` and `dog/1.png`, or a folder per split above it, `train/cat/1.png` and `test/cat/9.png`.
The names of the class folders are the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fibec_ray.data.pixels import SUFFIXES
from fibec_ray.data.splits import TEST, TRAIN, listed
from fibec_ray.errors import DataError


@dataclass(frozen=True)
class ClassFolders:
    """The images below one folder with a folder per class. N images."""

    folder: Path
    names: tuple[str, ...]
    """of the class folders, in alphabetical order"""
    files: list[Path]
    """N, sorted by class and name"""
    codes: NDArray[np.int64]
    """(N,) positions in `names`"""


def is_image(path: Path) -> bool:
    """True for a file with the suffix of an image that is not hidden."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith((".", "_")) and path.is_file()


def split_folders(
    folder: Path, train: Sequence[str] = ("train",), test: str | None = None
) -> tuple[list[Path], list[Path]]:
    """Folders of the training and of the test images; ([folder], []) for a folder without splits.

    train, test: names of the splits. Where they are not there, the usual names are looked for.
    """
    there = {path.name: path for path in _folders(folder)}
    lower = {name.casefold(): path for name, path in there.items()}
    if all(name in there for name in train):
        trained = [there[name] for name in train]
    elif (usual := next((lower[word] for word in TRAIN if word in lower), None)) is not None:
        trained = [usual]
    else:
        return [folder], []
    if not all(map(_folders, trained)):  # folders of classes that are called like splits
        return [folder], []
    tested = there.get(test or "") or next((lower[word] for word in TEST if word in lower), None)
    return trained, [] if tested is None or tested in trained else [tested]


def has_class_folders(folder: Path) -> bool:
    """True if the folder, or its folder of training images, has folders with images."""
    places, _ = split_folders(folder)
    return any(_has_images(path) for place in places for path in _folders(place)) or any(
        _has_images(path) for place in _folders(folder) for path in _folders(place)
    )


def class_folders(folder: Path) -> ClassFolders:
    """The images of one split. Raises DataError if there are fewer than two classes, or if a class is empty."""
    classes = _folders(folder)
    if len(classes) < 2:
        raise DataError(
            f"data.path: {folder}: {len(classes)} folders of classes; put the images of each class into a folder of "
            f"its own, such as {folder / 'cat' / '1.png'}; it holds {listed(folder)}"
        )
    files: list[Path] = []
    codes: list[int] = []
    for code, place in enumerate(classes):
        found = sorted(path for path in place.rglob("*") if is_image(path))
        if not found:
            raise DataError(f"data.path: {place}: holds no image ({', '.join(SUFFIXES)}); add some, or remove it")
        files += found
        codes += [code] * len(found)
    return ClassFolders(folder, tuple(path.name for path in classes), files, np.array(codes, dtype=np.int64))


def _folders(folder: Path) -> list[Path]:
    """Folders inside that are not hidden, in alphabetical order."""
    inside = (path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))
    return sorted(inside, key=lambda path: (path.name.casefold(), path.name))


def _has_images(folder: Path) -> bool:
    return any(is_image(path) for path in folder.rglob("*"))
