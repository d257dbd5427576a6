"""Unpack what a cluster sent: files and folders only, inside the target, within limits."""

from __future__ import annotations

import base64
import gzip
import io
import tarfile
import zlib
from pathlib import Path
from typing import cast

from fibec_ray.errors import RunDirError
from fibec_ray.files.storage import leads_out

MOST_BYTES = 640_000_000
"""The largest unpacked run directory: ten times what may travel packed."""
MOST_FILES = 100_000


class _TooMuch(Exception):
    pass


class _Bounded(io.RawIOBase):
    """A stream that ends in an error after `left` bytes, whatever its headers promise."""

    def __init__(self, source: gzip.GzipFile, left: int):
        self._source, self._left = source, left

    def read(self, size: int = -1) -> bytes:
        found = self._source.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(found)
        if self._left < 0:
            raise _TooMuch
        return found


def unpack(text: str, target: Path, most_bytes: int = MOST_BYTES, most_files: int = MOST_FILES) -> None:
    """Unpack a tar.gz in base64. Raises RunDirError for anything that is not a run directory within the limits."""
    try:
        packed = base64.b64decode("".join(text.split()), validate=True)
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as plain:
            _extract(_Bounded(plain, most_bytes), target, most_bytes, most_files)
    except _TooMuch as error:
        raise RunDirError(
            f"{target}: the cluster sent more than {most_bytes / 1e6:.0f} MB or {most_files:,} files; submit with "
            "--out URL, or copy the folder"
        ) from error
    except OSError as error:
        if error.errno is not None:  # an error of this disk
            raise RunDirError(f"{target}: cannot be written ({error.strerror})") from error
        raise _refusal(target, error) from error
    except (ValueError, tarfile.TarError, EOFError, zlib.error) as error:
        raise _refusal(target, error) from error


def _extract(stream: _Bounded, target: Path, most_bytes: int, most_files: int) -> None:
    target.mkdir(parents=True, exist_ok=True)
    count = -1
    with tarfile.open(fileobj=cast(io.BufferedIOBase, stream), mode="r|") as archive:
        for count, member in enumerate(archive):
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise tarfile.TarError(f"{member.name!r} is neither a file nor a folder")
            if leads_out(member.name.removeprefix("./")) and not (member.isdir() and member.name == "."):
                raise tarfile.TarError(f"{member.name[:200]!r} does not stay below a folder")
            most_bytes -= member.size
            if most_bytes < 0 or count >= most_files:
                raise _TooMuch
            if not 0 <= member.mtime < 2**33:  # no file can have such a time
                member.mtime = 0
            archive.extract(member, target, filter="data")  # refuses paths that lead out of the folder
    if count < 0:
        raise tarfile.TarError("it is empty")


def _refusal(target: Path, error: Exception) -> RunDirError:
    return RunDirError(f"{target}: what the cluster sent is not a run directory ({error or type(error).__name__})")
