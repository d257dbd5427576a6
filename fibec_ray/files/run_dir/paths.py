"""Paths that a user gives, and errors of the system about files: one line, never a traceback."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fibec_ray.errors import RunDirError

STORAGE_ERRORS = frozenset(
    getattr(errno, name)
    for name in (
        "EACCES", "EDQUOT", "EFBIG", "EIO", "EMFILE", "ENAMETOOLONG", "ENFILE", "ENOSPC", "EPERM", "EROFS", "ESTALE",
    )
    if hasattr(errno, name)
)  # fmt: skip
"""What a disk, its quota or its permissions fail with, wherever it happens: never a bug of ours."""


def absolute(path: Path) -> Path:
    """The path with `~` and links resolved. Raises RunDirError for one that no file can have."""
    try:
        found = path.expanduser().resolve()
        str(found).encode()  # safetensors and Arrow take no other names
        with suppress(FileNotFoundError, NotADirectoryError):
            found.lstat()  # refuses a name that is too long
    except (OSError, ValueError, RuntimeError) as error:
        raise RunDirError(f"{path}: is not a usable path ({reason(error)}); choose another") from error
    return found


def reason(error: Exception) -> str:
    """'No space left on device'"""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


@contextmanager
def refused(what: str, advice: str = "") -> Iterator[None]:
    """Turns the system's error about a file into RunDirError: '{what} (No space left on device){advice}'."""
    try:
        yield
    except OSError as error:
        raise RunDirError(f"{what} ({reason(error)}){advice}") from error


@contextmanager
def failing_plainly(folder: Path) -> Iterator[None]:
    """Turns the system's errors about files into RunDirError: those of a disk, and any about a file in the folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in STORAGE_ERRORS and not str(error.filename or "").startswith(str(folder)):
            raise
        raise RunDirError(f"{error.filename or folder}: cannot be read or written ({reason(error)})") from error
