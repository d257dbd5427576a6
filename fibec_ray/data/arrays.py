"""A folder of named arrays, written in one step and opened as memory maps."""

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
    """Readers see the old set, none, or this one, never half of it; it is on the disk when this returns.

    about: plain values to keep with them. Raises RunDirError.
    """
    with refused(f"{folder}: cannot be written"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            for name, array in arrays.items():
                _write(draft / f"{name}.npy", array)
            content = {"format": _FORMAT, **about, "arrays": list(arrays)}
            (draft / "set.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
            draft.chmod(0o755)  # mkdtemp's folders are closed to other users
            flush_folder(draft)
            replace_folder(draft, folder)
            flush(folder.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)  # nothing is left there when all went well


def save_array(path: Path, array: Array) -> None:
    """One array, on the disk when this returns. Raises RunDirError."""
    with refused(f"{path}: cannot be written"):
        _write(path, array)
        flush(path)


def _write(path: Path, array: Array) -> None:
    with path.open("wb") as file:
        # Not np.save(path): numpy then writes past Python, and on a full disk its error has no reason.
        np.save(SimpleNamespace(write=file.write), array, allow_pickle=False)


def load_arrays(folder: Path) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays as memory maps, shared by all processes of a node, and `about`. Raises DataError."""
    try:
        about = json.loads((folder / "set.json").read_text(encoding="utf-8"))
        if about["format"] != _FORMAT:
            raise DataError(f"{folder}: format {about['format']}, this version reads {_FORMAT}; encode the data again")
        names = about["arrays"]
        return {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in names}, about
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise no_set(folder, error) from error


def no_set(folder: Path, error: Exception) -> DataError:
    return DataError(f"{folder}: is not an encoded data set ({error}); encode the data again")


def refuse_misfit(folder: Path, fits: bool) -> None:
    if not fits:
        raise DataError(f"{folder}: the arrays do not fit together; encode the data again")
