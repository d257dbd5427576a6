"""Folders of files, on this machine or behind a URL."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.fs as pafs

from fibec_ray.errors import RunDirError


@dataclass(frozen=True)
class Place:
    """A folder of a file system."""

    filesystem: pafs.FileSystem
    path: str
    shown: str
    """as the user wrote it, for messages"""

    def __truediv__(self, name: str) -> Place:
        return Place(self.filesystem, str(PurePosixPath(self.path) / name), f"{self.shown.rstrip('/')}/{name}")

    @property
    def is_local(self) -> bool:
        """True for a folder of this machine."""
        return isinstance(self.filesystem, pafs.LocalFileSystem)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return PurePosixPath(self.path).name

    @property
    def parent(self) -> Place:
        """The folder above."""
        parent = str(PurePosixPath(self.path).parent)
        return Place(self.filesystem, parent, parent)

    def files(self) -> list[str]:
        """Names of the files in this folder, sorted; empty where there is no such folder."""
        return self._names(pafs.FileType.File)

    def folders(self) -> list[str]:
        """Names of the folders in this one, sorted; empty where there is no such folder."""
        return self._names(pafs.FileType.Directory)

    def _names(self, kind: pafs.FileType) -> list[str]:
        selector = pafs.FileSelector(self.path, allow_not_found=True)
        try:
            found = self.filesystem.get_file_info(selector)
        except NotADirectoryError:
            return []
        except OSError as error:
            raise RunDirError(f"{self.shown}: cannot be read: {error}") from error
        return sorted(entry.base_name for entry in found if entry.type == kind)

    def read_text(self, name: str) -> str | None:
        """A file of this folder; None where there is none. Raises RunDirError if it cannot be read."""
        try:
            with self.filesystem.open_input_stream(f"{self.path}/{name}") as file:
                return bytes(file.read()).decode("utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise RunDirError(f"{self.shown}/{name}: cannot be read: {error}") from error


def local_path(path: Path) -> Path:
    """Resolve `~` and links. Raises RunDirError for a path that no file can have."""
    try:
        found = path.expanduser().resolve()
        str(found).encode()  # Arrow needs UTF-8
        with suppress(FileNotFoundError, NotADirectoryError):
            found.lstat()  # fails for a name that is too long
    except (OSError, ValueError, RuntimeError) as error:
        raise RunDirError(f"{path}: is not a usable path ({error}); choose another") from error
    return found


def place(where: str | Path) -> Place:
    """Open a path or a URL. pyarrow handles s3://, gs://, abfs:// and hdfs://, fsspec all others.

    Raises RunDirError for a URL that neither knows.
    """
    text = str(where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RunDirError(f"{text}: its name is not UTF-8; rename it") from error
    if "://" not in text:
        return Place(pafs.LocalFileSystem(), local_path(Path(text)).as_posix(), text)
    try:
        filesystem, path = pafs.FileSystem.from_uri(text)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        filesystem, path = _by_fsspec(text)
    except (OSError, ValueError) as error:
        raise RunDirError(f"{text}: cannot be opened: {error}") from error
    return Place(filesystem, path.rstrip("/"), text)


def _by_fsspec(url: str) -> tuple[pafs.FileSystem, str]:
    import fsspec  # only for URLs that pyarrow does not know

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError, OSError) as error:
        raise RunDirError(f"{url}: no file system for this URL ({error})") from error
    return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)), path
