"""Counts what a process does to the files below a folder, and has one of these operations fail; for crashes.py.

Creating, writing, renaming, removing and flushing are counted, whoever does it: Python's own files, shutil, filelock,
and safetensors, which writes past Python. Reading is not.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError

FAULTS = {
    "kill": "SIGKILL before the operation",
    "torn": "half of what is written comes to the disk, then SIGKILL",
    "full": "from the operation on nothing can be created or written (ENOSPC)",
    "short": "half of what is written comes to the disk, then ENOSPC, once",
    "broken": "the operation fails with EIO, once",
}
GROWS = ("open", "write", "mkdir", "save")
APPLIES = {"torn": ("write", "save"), "short": ("write", "save"), "full": GROWS}
"""Faults that not every operation can have."""


class Operations:
    """`install` in a process that will end soon: nothing is put back. log: 'write out/config.yaml' for each so far."""

    def __init__(self, root: Path, at: int | None = None, fault: str = "kill"):
        self._root, self._at, self._fault = str(root), at, fault
        self._lock = threading.Lock()
        self.log: list[str] = []

    def install(self) -> None:
        for name in ("replace", "rename", "link", "symlink"):
            setattr(os, name, self._counted(name, getattr(os, name), which=1))
        for name in ("unlink", "remove", "rmdir", "mkdir", "truncate", "chmod"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        os.fsync = self._counted("fsync", lambda handle: None)  # a killed process loses nothing that it has written
        os.open = self._opened(os.open)  # type: ignore[assignment]
        builtins.open = io.open = self._file(io.open)  # type: ignore[assignment]
        save = safetensors.torch.save_file
        for module in list(sys.modules.values()):
            if getattr(module, "save_file", None) is save:
                module.save_file = self._saved(save)  # type: ignore[attr-defined]

    def step(self, what: str, path: str) -> bool:
        """Counts one operation; True: only half of it is to be done. Raises OSError, or does not return."""
        if path != self._root and not path.startswith(f"{self._root}/"):
            return False
        with self._lock:
            number = len(self.log)
            self.log.append(f"{what} {path.removeprefix(self._root).lstrip('/')}")
        if self._at is None or number < self._at:
            return False
        if self._fault == "full" and what in GROWS:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        if number > self._at or self._fault == "full":
            return False
        if self._fault == "kill":
            die()
        if self._fault == "broken":
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return what in ("write", "save")

    def finish_half(self, path: str) -> None:
        """After half of an operation."""
        if self._fault == "torn":
            die()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def _counted(self, name: str, real: Callable[..., Any], which: int = 0) -> Callable[..., Any]:
        def counted(*args: Any, **options: Any) -> Any:
            folder = options.get("dir_fd", options.get("src_dir_fd"))
            self.step(name, where(args[which], folder))
            return real(*args, **options)

        return counted

    def _opened(self, real: Callable[..., int]) -> Callable[..., int]:
        def opened(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if flags & (os.O_CREAT | os.O_TRUNC):
                self.step("open", where(path, dir_fd))
            return real(path, flags, mode, dir_fd=dir_fd)

        return opened

    def _file(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def opened(
            file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, *rest: Any, **more: Any
        ) -> Any:
            path = "" if isinstance(file, int) else where(file, None)
            if not set(mode) & set("wax+") or not path.startswith(self._root):
                return real(file, mode, buffering, encoding, *rest, **more)
            self.step("open", path)
            binary = io.BufferedWriter(Raw(self, path, mode.replace("b", "").replace("t", "")))
            return binary if "b" in mode else io.TextIOWrapper(binary, encoding=encoding)

        return opened

    def _saved(self, real: Callable[..., None]) -> Callable[..., None]:
        def saved(tensors: Any, filename: Any, metadata: Any = None) -> None:
            path = where(filename, None)
            try:
                self.step("open", path)
                half = self.step("save", path)
                real(tensors, filename, metadata)
                if half:
                    os.truncate(path, os.path.getsize(path) // 2)
                    self.finish_half(path)
            except OSError as error:
                raise SafetensorError(f"Error while serializing: I/O error: {error.strerror}") from error

        return saved


class Raw(io.FileIO):
    """A file whose writes are counted as they go to the system."""

    def __init__(self, operations: Operations, path: str, mode: str):
        super().__init__(path, mode)
        self._operations, self._path, self._half = operations, path, False

    def write(self, content: Any) -> int:
        if self._half:
            self._operations.finish_half(self._path)
        self._half = self._operations.step("write", self._path)
        if self._half:
            written = super().write(bytes(content)[: len(content) // 2])
            if self._operations._fault == "torn":
                die()
            return written or 0
        return super().write(content) or 0


def where(path: Any, folder: int | None) -> str:
    """The absolute path that a call is about: a name, a file descriptor, or a name in an open folder."""
    if isinstance(path, int):
        return os.readlink(f"/proc/self/fd/{path}")
    text = os.fsdecode(path)
    base = os.getcwd() if folder is None else os.readlink(f"/proc/self/fd/{folder}")
    return os.path.normpath(os.path.join(base, text))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
