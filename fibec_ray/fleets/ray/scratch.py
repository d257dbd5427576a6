"""The folder of a local Ray cluster: its sockets, logs and spilled objects.

Ray's default is a folder that all users share: every user can reach the sockets, and each run leaves a session behind.
This folder belongs to one run and one user (mode 0700), and is removed with the cluster.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from fibec_ray.errors import ConfigError

PREFIX, LOCK = "fibec-", ".cluster-of-a-run"
YOUNG_S = 60
SHORT = "/tmp"
SOCKET = Path("session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
"""As long as the longest path that Ray adds to the folder. A socket's path may have about 100 bytes."""


@dataclass(frozen=True)
class Scratch:
    """The folder. note: why it is not where the environment says; None if it is."""

    path: Path
    note: str | None
    _lock: FileLock
    """held while the driver lives; a folder with a free lock was left by a killed driver"""

    def remove(self, logs_to: Path | None = None) -> None:
        """Delete the folder. logs_to: where to copy Ray's logs first."""
        if logs_to is not None:
            with suppress(OSError, shutil.Error):
                for logs in self.path.glob("session_2*/logs"):  # not session_latest, which is a link
                    shutil.copytree(logs, logs_to, dirs_exist_ok=True, ignore_dangling_symlinks=True)
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()


def is_scratch(folder: Path) -> bool:
    """True for the folder of a local cluster that belongs to one run."""
    return (folder / LOCK).exists()


def make(environment: Mapping[str, str]) -> Scratch:
    """A new folder in RAY_TMPDIR, TMPDIR or /tmp. Folders that killed drivers left there are removed.

    Raises ConfigError if no folder can be made.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if environment.get(name)), None)
    if name is None:
        return _make_in(Path(SHORT), f"{SHORT}: ")
    asked = Path(os.path.abspath(environment[name]))
    made = _make_in(asked, f"{name}: {asked}: ")
    if _takes_sockets(made.path):
        return made
    made.remove()
    why = f"{name}: {asked} cannot have Ray's sockets (its path is too long, or its disk takes none)"
    elsewhere = _make_in(Path(SHORT), f"{why}, and {SHORT} ")
    return replace(elsewhere, note=f"{why}; the files of this run's Ray go to {SHORT}")


def _make_in(parent: Path, what: str) -> Scratch:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        lock = FileLock(path / LOCK)
        lock.acquire(timeout=0)
    except OSError as error:
        raise ConfigError(
            f"{what}cannot be written ({error.strerror}); point RAY_TMPDIR at a folder on a local disk, or set "
            "fleet.kind=local to run without Ray"
        ) from error
    return Scratch(path, None, lock)


def _sweep(parent: Path) -> None:
    """Remove folders of killed drivers. Very new ones stay: their driver may not hold the lock yet."""
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):
            if time.time() - path.stat().st_mtime > YOUNG_S and (path / LOCK).is_file():
                with FileLock(path / LOCK).acquire(timeout=0):
                    shutil.rmtree(path, ignore_errors=True)


def _takes_sockets(folder: Path) -> bool:
    """True if the folder can hold a socket whose path is as long as Ray's."""
    path = folder / SOCKET
    try:
        path.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(str(path))
    except OSError:
        return False
    finally:
        shutil.rmtree(folder / SOCKET.parts[0], ignore_errors=True)
    return True
