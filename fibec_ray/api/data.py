"""Data that a Python caller has in memory, written as a Parquet file that runs read."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fibec_ray.errors import DataError
from fibec_ray.files.run_dir import refused
from fibec_ray.files.storage import is_url

FOLDER = ".data"
"""Folder beside the run directory, with a folder for each content, so that runs of the same frame share a file."""
NAME = "own-data.parquet"
"""The task and the run are called after the file."""
WRITERS = ("write_parquet", "to_parquet")
"""The method that writes a frame: of polars; of pandas and `datasets`."""


def data_settings(data: Any, out: str | Path | None) -> dict[str, Any]:
    """The changes of the `data` section that `data` stands for; {} for None.

    data: a path, a mapping of settings, or a frame, which is written beside `out`. Raises DataError for anything else,
    and for a frame that Parquet has no types for.
    """
    if data is None:
        return {}
    if isinstance(data, Mapping) and not any(_writer(value) for value in data.values()):  # a DatasetDict is one too
        return {"data": dict(data)}
    if isinstance(data, str | Path):
        return {"data": {"path": str(data)}}
    return {"data": {"path": str(_written(data, out))}}


def _written(frame: Any, out: str | Path | None) -> Path:
    write = _writer(frame)
    if write is None:
        raise DataError(
            f"data: expected a path, a polars or pandas frame, a datasets.Dataset or a mapping of settings, found "
            f"{type(frame).__name__}; a LazyFrame needs .collect(), a DatasetDict one of its splits"
        )
    beside = Path("runs") if out is None or is_url(str(out)) else Path(out).parent
    folder = beside.expanduser().absolute() / FOLDER
    draft = folder / f".{os.getpid()}.part"
    with refused(f"{folder}: cannot write the data here", "; choose another `out`"):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            _write(write, draft)
            path = folder / hashlib.blake2b(draft.read_bytes(), digest_size=8).hexdigest() / NAME
            path.parent.mkdir(exist_ok=True)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    return path


def _writer(frame: Any) -> Any:
    return next((getattr(frame, name) for name in WRITERS if hasattr(frame, name)), None)


def _write(write: Any, path: Path) -> None:
    try:
        write(str(path))
    except OSError:
        raise
    except Exception as error:  # the errors of polars, pandas and pyarrow have no common root
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"data: this frame cannot be written as Parquet ({reason}); keep text and label columns"
        ) from error
