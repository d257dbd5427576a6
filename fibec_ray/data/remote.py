"""Keeps a data set behind a URL (`data.path: s3://...`) near at hand while it is read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fibec_ray.errors import DataError
from fibec_ray.files.storage import Storage, is_url


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
