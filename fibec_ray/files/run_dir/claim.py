"""Claim a run directory for one driver at a time, before it writes anything.

The operating system releases a lock when its holder ends, so a dead driver never blocks the folder.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout

from fibec_ray.errors import RunDirError
from fibec_ray.files.run_dir.leftovers import DRIVER, LOCK, STARTING, clear, drop_drafts, half_made, holds_run
from fibec_ray.files.run_dir.paths import absolute, failing_plainly, reason, refused
from fibec_ray.files.run_dir.whole import flush, whole, write_json

ATTEMPTS = 10


class Claim:
    """A run directory that only this process writes to.

    begun: a round is logged, or about to be. From then on nothing is removed, whatever fails.
    """

    def __init__(self, folder: Path, begun: bool):
        self.folder, self.begun = folder, begun

    def begin(self) -> None:
        """Call this before a round is logged. Raises RunDirError."""
        self.begun = True
        with failing_plainly(self.folder), suppress(FileNotFoundError):
            (self.folder / STARTING).unlink()
            flush(self.folder)


def create(path: Path, made: list[Path] | None = None) -> Path:
    """Make a folder that a new run may begin in. made: collects the folders that this call makes, outermost first.

    Raises RunDirError if the folder is not empty or cannot be made.
    """
    try:
        path = absolute(path)
        _make_all(path, [] if made is None else made)
        if half_made(path):
            return path
        has_run = (path / "checkpoints" / "run.json").exists()
    except OSError as error:
        raise RunDirError(f"{path}: cannot be written ({reason(error)}); choose another --out") from error
    if has_run:
        raise RunDirError(
            f"{path}: is not empty; choose another --out, or continue the run in it: fibec-ray resume {path}"
        )
    raise RunDirError(f"{path}: is not empty; choose another --out, or remove it")


@contextmanager
def claimed(path: Path) -> Iterator[Claim]:
    """A folder for a new run, made if missing, and cleared of what a stopped start left.

    If the block fails before `Claim.begin`, everything that it wrote is removed, so the same command can be given
    again. Raises RunDirError if the folder is not empty, or another driver is at work in it.
    """
    made = list[Path]()
    try:
        with _entered(path, made) as folder:
            create(folder)  # check again under the lock: a run may have begun and ended meanwhile
            claim = Claim(folder, begun=False)
            try:
                with failing_plainly(folder):
                    _start(folder)
                    yield claim
            except BaseException:
                if not claim.begun:
                    _undo(folder)
                raise
            finally:
                _forget_driver(folder)
    finally:
        _remove_empty(made[::-1])


@contextmanager
def locked(run_dir: Path) -> Iterator[Claim]:
    """Keep other drivers out of a run directory, without removing anything. Raises RunDirError if one is at work."""
    with _lock(run_dir):
        try:
            with failing_plainly(run_dir):
                drop_drafts(run_dir)
                _tell_driver(run_dir)
                yield Claim(run_dir, begun=True)
        finally:
            _forget_driver(run_dir)


@contextmanager
def alone(folder: Path, lock: Path, busy: str, advice: str) -> Iterator[None]:
    """Hold a lock file while the block runs. Raises RunDirError, with the text `busy` if another process holds it."""
    with refused(f"{folder}: cannot be written", advice):
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            held = FileLock(lock, timeout=0)
            held.acquire()
        except Timeout as error:
            raise RunDirError(busy) from error
    try:
        with failing_plainly(folder):
            yield
    finally:
        held.release()


def refuse_driver(run_dir: Path) -> None:
    """Raises RunDirError if a driver is at work in a run directory."""
    with _lock(run_dir):
        pass


@contextmanager
def taken(folder: Path, name: str) -> Iterator[Path]:
    """A new folder/name (or folder/name-2, ...) that no other process gets. It is removed if it stays empty."""
    made = list[Path]()
    try:
        _make_all(absolute(folder), made)
        path = next(path for path in _names(folder, name) if _make(path))
    except (OSError, ValueError) as error:
        raise RunDirError(
            f"{folder / name}: cannot be made ({reason(error)}); choose another name, or --out"
        ) from error
    try:
        yield path
    finally:
        _remove_empty([path, *made[::-1]])


def next_free(folder: Path, name: str) -> Path:
    """The first of folder/name, folder/name-2, ... that does not exist. Another process may get the same."""
    return next(path for path in _names(folder, name) if not path.exists())


def _names(folder: Path, name: str) -> Iterator[Path]:
    yield folder / name
    for number in count(2):
        yield folder / f"{name}-{number}"


def _make(path: Path) -> bool:
    try:
        path.mkdir()
    except FileExistsError:
        return False
    return True


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # folders in use are not empty
            folder.rmdir()


def _make_all(path: Path, made: list[Path]) -> None:
    """Make the folder and its parents, and record those that this call made. Another process may be making them too."""
    for each in reversed([path, *path.parents]):
        if not each.is_dir():
            try:
                each.mkdir()
            except FileExistsError:
                if each == path and not each.is_dir():
                    raise
            else:
                made.append(each)


@contextmanager
def _entered(path: Path, made: list[Path]) -> Iterator[Path]:
    """Make and lock the folder."""
    for attempt in range(ATTEMPTS):
        folder = create(path, made)
        try:
            lock = _acquired(folder)
            break
        except FileNotFoundError as error:  # another process has just cleaned up its failed start
            if attempt == ATTEMPTS - 1:
                raise RunDirError(f"{folder}: cannot be written ({reason(error)}); choose another --out") from error
    try:
        yield folder
    finally:
        lock.release()


@contextmanager
def _lock(run_dir: Path) -> Iterator[None]:
    with failing_plainly(run_dir):
        lock = _acquired(run_dir)
    try:
        yield
    finally:
        lock.release()


def _acquired(run_dir: Path) -> BaseFileLock:
    """Lock a run directory. Raises RunDirError if a driver holds it, FileNotFoundError if the folder is gone."""
    lock = FileLock(run_dir / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise RunDirError(f"{run_dir}: a driver is at work here{_holder(run_dir)}; wait for it, or stop it") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise RunDirError(f"{run_dir}: cannot be written ({reason(error)})") from error
    return lock


def _start(folder: Path) -> None:
    """Mark the folder first: if this process is killed, everything written after the mark can be removed."""
    with whole(folder / STARTING):
        pass
    clear(folder)
    _tell_driver(folder)


def _undo(folder: Path) -> None:
    """Remove what a failed start wrote. The lock file goes last, so a waiting process sees that and makes a new one."""
    with suppress(OSError):
        clear(folder)
        if not holds_run(folder):
            (folder / STARTING).unlink(missing_ok=True)
            _forget_driver(folder)
            (folder / LOCK).unlink(missing_ok=True)


def _tell_driver(folder: Path) -> None:
    write_json(folder / DRIVER, {"pid": os.getpid(), "host": platform.node()})


def _forget_driver(folder: Path) -> None:
    with suppress(OSError):
        (folder / DRIVER).unlink(missing_ok=True)


def _holder(run_dir: Path) -> str:
    """' (pid 17 on somehost)'; '' if unknown."""
    try:
        found = json.loads((run_dir / DRIVER).read_text(encoding="utf-8"))
        return f" (pid {found['pid']} on {found['host']})"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
