"""The run directory: made once, written to whole or not at all; used by the simulation and the CLI."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from fibec_ray.errors import FibecError, RunDirError


def create(path: Path) -> Path:
    """An empty run directory. Raises RunDirError if it has a run in it already, or cannot be written."""
    path = path.expanduser().resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise RunDirError(f"{path}: is not empty; choose another --out, or remove it")
        probe = path / ".probe"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise RunDirError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
    return path


@contextmanager
def begun(path: Path) -> Iterator[Path]:
    """`create`; what is in the way of a second try is taken away again if the run fails before it has begun.

    Once a round is logged nothing is ever taken away.
    """
    there = path.expanduser().exists()
    folder = create(path)
    try:
        yield folder
    except FibecError:
        if not any((folder / "rounds").glob("*.parquet")):
            _clear(folder, itself=not there)
        raise


def _clear(folder: Path, itself: bool) -> None:
    with suppress(OSError):
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        if itself:
            folder.rmdir()


def next_free(folder: Path, name: str) -> Path:
    """folder/name, or folder/name-2 and so on."""
    path, number = folder / name, 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}"
    return path


def write_text(path: Path, text: str) -> None:
    """All of it or nothing: written beside the target, then renamed."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise RunDirError(f"{path}: cannot be written ({error.strerror})") from error


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, yaml.safe_dump(dict(value), sort_keys=False, allow_unicode=True))


def replace_folder(draft: Path, target: Path) -> None:
    """Puts a finished folder in place of an older one."""
    if target.exists():
        shutil.rmtree(target)
    os.replace(draft, target)


def flush(path: Path) -> None:
    """Has the system write a file, or the names in a folder, to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


LOCK, DRIVER = ".lock", ".driver.json"


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Keeps other drivers out. Raises RunDirError if there is one.

    The system gives the lock back when its holder ends, however it ends: that of a dead driver keeps nobody out.
    """
    lock = FileLock(run_dir / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunDirError(f"{run_dir}: a driver is at work here{_holder(run_dir)}; wait for it, or stop it") from error
    except OSError as error:
        raise RunDirError(f"{run_dir}: cannot be written ({error.strerror})") from error
    try:
        write_json(run_dir / DRIVER, {"pid": os.getpid(), "host": platform.node()})
        yield
    finally:
        (run_dir / DRIVER).unlink(missing_ok=True)
        lock.release()


def _holder(run_dir: Path) -> str:
    """' (pid 17 on somehost)', if it has said so."""
    try:
        found = json.loads((run_dir / DRIVER).read_text(encoding="utf-8"))
        return f" (pid {found['pid']} on {found['host']})"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
