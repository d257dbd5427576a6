"""Reads images from numpy's files: `.npz` with images and labels, or `.npy` files of each.

Names are those of common sets: `images` and `labels`, `x_train`, `y_train`, `x_test`, `y_test` (Keras), `train_images`,
`train_labels`, `test_images` (MedMNIST). Pickled objects are never loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fibec_ray.data.splits import TEST, TRAIN, listed
from fibec_ray.errors import DataError

_IMAGES = ("images", "x", "data", "image", "pixels")
_LABELS = ("labels", "y", "targets", "label")
Array = NDArray[Any]


@dataclass(frozen=True)
class Labelled:
    """N images with labels, not yet checked."""

    images: Array
    """(N, H, W) or (N, H, W, C)"""
    labels: Array
    """(N,) whole numbers or strings"""
    where: str


def is_arrays(path: Path) -> bool:
    """True for a .npz or .npy file, and for a folder with one."""
    if path.is_dir():
        return any(is_arrays(each) for each in path.iterdir() if each.is_file())
    return path.suffix.lower() in (".npz", ".npy")


def read_arrays(path: Path) -> tuple[Labelled, Labelled | None]:
    """(train, test) of a file or folder; test is None if there are no test images. Raises DataError."""
    arrays = _of_folder(path) if path.is_dir() else _of_file(path)
    train, test = _split(arrays, ("", *TRAIN), path), _split(arrays, TEST, path)
    if train is None:
        raise DataError(
            f"{path}: has the arrays {', '.join(arrays) or 'of no name'}; name them images and labels, or x_train, "
            "y_train, x_test and y_test"
        )
    return train, test


def _of_folder(folder: Path) -> dict[str, Array]:
    """Arrays by name; those of train.npz are called train_images and so on."""
    found: dict[str, Array] = {}
    for path in sorted(each for each in folder.iterdir() if each.is_file() and is_arrays(each)):
        split = path.stem.casefold()
        prefix = f"{split}_" if split in (*TRAIN, *TEST) else ""
        found |= {f"{prefix}{name}" if path.suffix == ".npz" else name: array for name, array in _of_file(path).items()}
    return found


def _of_file(path: Path) -> dict[str, Array]:
    if path.suffix.lower() == ".npy" and path.stem.casefold() in _IMAGES:
        beside = [each for name in _LABELS if (each := path.with_name(f"{name}.npy")).is_file()]
        return {path.stem.casefold(): _load(path), **({beside[0].stem: _load(beside[0])} if beside else {})}
    found = _load(path)
    return {path.stem.casefold(): found} if isinstance(found, np.ndarray) else found


def _load(path: Path) -> Any:
    """One array, as a memory map, or the arrays of a .npz by name. Raises DataError."""
    try:
        found = np.load(path, mmap_mode="r" if path.suffix.lower() == ".npy" else None, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found
        with found:
            return {name.casefold(): found[name] for name in found.files}
    except (OSError, ValueError, EOFError, BadZipFile, MemoryError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if any(word in reason for word in ("allow_pickle", "pickled", "Python objects")):
            reason = "it holds pickled Python objects, which can run code"
        raise DataError(f"{path}: cannot be read as arrays ({reason}); save plain arrays with numpy.savez") from error


def _split(arrays: Mapping[str, Array], words: tuple[str, ...], path: Path) -> Labelled | None:
    """The images and labels of the first split among `words` that is there; "": names without a split."""
    for word in words:
        images = _find(arrays, word, _IMAGES)
        if images is None:
            continue
        labels = _find(arrays, word, _LABELS)
        there = listed(path) if path.is_dir() else ", ".join(arrays)
        if labels is None:
            raise DataError(f"{path}: has {images} but no labels for it; it holds {there}; add an array of labels")
        return _fitting(arrays[images], arrays[labels], f"{path}, array '{images}'")
    return None


def _find(arrays: Mapping[str, Array], word: str, kinds: tuple[str, ...]) -> str | None:
    names = [name for kind in kinds for name in ((f"{word}_{kind}", f"{kind}_{word}") if word else (kind,))]
    return next((name for name in names if name in arrays), None)


def _fitting(images: Array, labels: Array, where: str) -> Labelled:
    if images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[-1] not in (1, 3, 4):
        images = np.moveaxis(images, 1, -1)  # torch's order
    if images.ndim not in (3, 4):
        raise DataError(f"{where}: shape {images.shape}; allowed: (N, H, W), (N, H, W, C) and (N, C, H, W)")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or len(labels) != len(images):
        raise DataError(f"{where}: {len(images)} images, but labels of shape {labels.shape}; give one for each image")
    if labels.dtype.kind not in "iubUS":
        raise DataError(f"{where}: labels of type {labels.dtype}; allowed: whole numbers and names of classes")
    if not len(images):
        raise DataError(f"{where}: no images; give at least one")
    return Labelled(images, labels, where)
