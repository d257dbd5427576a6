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
"""Errors of a disk, its quota or its permissions. They are never bugs of this package."""


def absolute(path: Path) -> Path:
    """The path with `~` and links resolved. Raises RunDirError for an impossible path."""
    try:
        found = path.expanduser().resolve()
        str(found).encode()  # safetensors and Arrow accept only such names
        with suppress(FileNotFoundError, NotADirectoryError):
            found.lstat()  # refuses a name that is too long
    except (OSError, ValueError, RuntimeError) as error:
        raise RunDirError(f"{path}: is not a usable path ({reason(error)}); choose another") from error
    return found


def reason(error: Exception) -> str:
    """The reason in words: 'No space left on device'."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


@contextmanager
def refused(what: str, advice: str = "") -> Iterator[None]:
    """Turn the system's error about a file into RunDirError: '{what} (No space left on device){advice}'."""
    try:
        yield
    except OSError as error:
        raise RunDirError(f"{what} ({reason(error)}){advice}") from error


@contextmanager
def failing_plainly(folder: Path) -> Iterator[None]:
    """Turn the system's errors into RunDirError: those of a disk, and any about a file in the folder."""
    try:
        yield
    except OSError as error:
        if error.errno not in STORAGE_ERRORS and not str(error.filename or "").startswith(str(folder)):
            raise
        raise RunDirError(f"{error.filename or folder}: cannot be read or written ({reason(error)})") from error
