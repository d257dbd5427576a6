"""Saves named arrays in a folder, atomically, and opens them as memory maps."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fibec_ray.errors import DataError
from fibec_ray.files.run_dir import flush, flush_folder, refused, replace_folder

_FORMAT = 1
Array = NDArray[Any]


def save_arrays(folder: Path, arrays: Mapping[str, Array], **about: Any) -> None:
    """Write the arrays in one step, flushed to disk: readers see the old set, none, or the new one, never a part.

    about: plain values to save with them. Raises RunDirError.
    """
    with refused(f"{folder}: cannot be written"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for name, array in arrays.items():
                _write(draft / f"{name}.npy", array)
            content = {"format": _FORMAT, **about, "arrays": list(arrays)}
            (draft / "set.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
            draft.chmod(0o755)  # mkdtemp makes folders private
            flush_folder(draft)
            replace_folder(draft, folder)
            flush(folder.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)  # it was renamed if all went well


def save_array(path: Path, array: Array) -> None:
    """Write one array, flushed to disk. Raises RunDirError."""
    with refused(f"{path}: cannot be written"):
        _write(path, array)
        flush(path)


def _write(path: Path, array: Array) -> None:
    with path.open("wb") as file:
        # Not np.save(path): numpy then bypasses Python's file object, and its error on a full disk has no reason.
        np.save(SimpleNamespace(write=file.write), array, allow_pickle=False)


def load_arrays(folder: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays as memory maps, shared by all processes of a node, and the `about` values. Raises DataError."""
    try:
        about = json.loads((folder / "set.json").read_text(encoding="utf-8"))
        if about["format"] != _FORMAT:
            raise DataError(f"{folder}: format {about['format']}, this version reads {_FORMAT}; encode the data again")
        names = about["arrays"]
        return {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}, about
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise no_set(folder, error) from error


def no_set(folder: Path, error: Exception) -> DataError:
    """The error for a folder that is not an encoded data set."""
    return DataError(f"{folder}: is not an encoded data set ({error}); encode the data again")


def refuse_misfit(folder: Path, fits: bool) -> None:
    """Raise DataError if a folder's arrays do not fit together."""
    if not fits:
        raise DataError(f"{folder}: the arrays do not fit together; encode the data again")
