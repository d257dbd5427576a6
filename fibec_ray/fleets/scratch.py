"""The folder of a local Ray cluster: its sockets, logs and spilled objects; made and removed by cluster.py.

Ray's own choice, a folder that all users share, lets every user reach the sockets and leaves one session behind for
each run. This folder belongs to one run and one user (mode 0700), and goes with the cluster.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from fibec_ray.errors import ConfigError

PREFIX = "fibec-"
SHORT = "/tmp"
SOCKET = Path("session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
"""A path as long as the longest that Ray adds to the folder. The system takes about 100 bytes in all."""


def make(environment: Mapping[str, str]) -> tuple[Path, str | None]:
    """A new folder in RAY_TMPDIR, TMPDIR or /tmp, and a line about why it is elsewhere than asked for, if it is.

    Raises ConfigError if no folder can be had.
    """
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if environment.get(name)), None)
    if name is None:
        return _make_in(Path(SHORT), f"{SHORT}: "), None
    asked = Path(os.path.abspath(environment[name]))
    folder = _make_in(asked, f"{name}: {asked}: ")
    if _takes_sockets(folder):
        return folder, None
    remove(folder)
    return (
        _make_in(Path(SHORT), f"{name}: {asked} cannot have Ray's sockets, and {SHORT} "),
        f"{name}: {asked} cannot have Ray's sockets (its path is too long, or its disk takes none); "
        f"the files of this run's Ray go to {SHORT}",
    )


def remove(folder: Path, logs_to: Path | None = None) -> None:
    """Delete the folder. logs_to: where Ray's logs go instead, if there are some."""
    if logs_to is not None:
        with suppress(OSError, shutil.Error):
            for logs in folder.glob("session_2*/logs"):  # not session_latest, which is a link
                shutil.copytree(logs, logs_to, dirs_exist_ok=True, ignore_dangling_symlinks=True)
    shutil.rmtree(folder, ignore_errors=True)


def _make_in(parent: Path, what: str) -> Path:
    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
    except OSError as error:
        raise ConfigError(
            f"{what}cannot be written ({error.strerror}); point RAY_TMPDIR at a folder on a local disk, or set "
            "fleet.kind=local to run without Ray"
        ) from error


def _takes_sockets(folder: Path) -> bool:
    """Tries it with a path as long as Ray's."""
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
