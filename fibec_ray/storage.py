"""Files on shared or object storage, named by URL (s3://, gs://, file://); used for data sets and run directories.

pyarrow.fs does the talking, and fsspec where pyarrow does not know a kind of URL: credentials are those of the machine
(environment, profile or instance role), never ours.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fibec_ray.errors import StorageError


def is_url(text: str | Path) -> bool:
    """A path that went through pathlib has lost a slash ('s3:/bucket'), and is none."""
    return "://" in str(text)


class Storage:
    """A folder (or a file) behind a URL. Every method raises StorageError where the storage does not do as asked."""

    def __init__(self, url: str):
        import pyarrow as pa
        from pyarrow import fs

        self.url = url.rstrip("/")
        self._errors: tuple[type[Exception], ...] = (pa.ArrowException, OSError)
        try:
            self._fs, self._root = _file_system(self.url)
        except (*self._errors, ValueError, ImportError) as error:
            raise StorageError(
                f"{url}: no such storage ({_first_line(error)}); allowed: s3://BUCKET/..., gs://BUCKET/..., "
                "file:///absolute/path, hdfs://..., abfs://..., and what fsspec has a package for"
            ) from error
        self._kinds = fs.FileType

    def is_folder(self) -> bool:
        """Object stores have no empty folders: what holds nothing is none."""
        return bool(self._info(self._root).type == self._kinds.Directory)

    def exists(self) -> bool:
        return bool(self._info(self._root).type != self._kinds.NotFound)

    def files(self) -> dict[str, int]:
        """{path below the root: size in bytes}; empty where there is nothing."""
        from pyarrow import fs

        try:
            found = self._fs.get_file_info(fs.FileSelector(self._root, recursive=True, allow_not_found=True))
        except self._errors as error:
            raise self._failed("cannot be listed", error) from error
        start = len(self._root.rstrip("/")) + 1
        return {info.path[start:]: info.size for info in found if info.is_file}

    def upload(self, local: Path, name: str) -> None:
        """Writes one file below the root. Readers see the old one or the new one: it is renamed, or put, in one go."""
        target = f"{self._root}/{name}"
        try:
            self._make_parent(target)
            with local.open("rb") as source, self._open(target) as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            self._publish(target)
        except self._errors as error:
            raise self._failed(f"{name} cannot be written", error) from error

    def download(self, local: Path, names: Iterable[str] | None = None) -> int:
        """Copies the files (None: all that are there) into a local folder; returns their total size in bytes."""
        total = 0
        for name in self.files() if names is None else names:
            total += self._bring(f"{self._root}/{name}", local / name)
        return total

    def download_file(self, local: Path) -> None:
        """The URL names one file, which becomes `local`."""
        self._bring(self._root, local)

    def remove(self, name: str) -> None:
        try:
            self._fs.delete_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return
        except self._errors as error:
            raise self._failed(f"{name} cannot be removed", error) from error

    def _bring(self, source: str, local: Path) -> int:
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            part = local.with_name(f".{local.name}.part")
            with self._fs.open_input_stream(source) as stream, part.open("wb") as sink:
                shutil.copyfileobj(stream, sink, 1 << 20)
            part.replace(local)
        except self._errors as error:
            raise self._failed(f"{local.name} cannot be read", error) from error
        return local.stat().st_size

    @property
    def _renames(self) -> bool:
        """Object stores put whole objects; file systems need a rename for that."""
        return bool(self._fs.type_name in ("local", "hdfs"))

    def _make_parent(self, target: str) -> None:
        if self._renames:
            self._fs.create_dir(target.rpartition("/")[0], recursive=True)

    def _open(self, target: str) -> Any:
        return self._fs.open_output_stream(f"{target}.part" if self._renames else target)

    def _publish(self, target: str) -> None:
        if self._renames:
            self._fs.move(f"{target}.part", target)

    def _info(self, path: str) -> Any:
        try:
            return self._fs.get_file_info(path)
        except self._errors as error:
            raise self._failed("does not answer", error) from error

    def _failed(self, what: str, error: Exception) -> StorageError:
        return StorageError(
            f"{self.url}: {what} ({_first_line(error)}); check the URL, and the credentials of this machine for it"
        )


def _file_system(url: str) -> tuple[Any, str]:
    from pyarrow import ArrowInvalid, ArrowNotImplementedError, fs

    try:
        found: tuple[Any, str] = fs.FileSystem.from_uri(url)
        return found
    except (ArrowInvalid, ArrowNotImplementedError):
        if not is_url(url) or url.startswith("file://"):
            raise
    import fsspec  # only for URLs that pyarrow does not know

    other, root = fsspec.core.url_to_fs(url)
    return fs.PyFileSystem(fs.FSSpecHandler(other)), str(root)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
