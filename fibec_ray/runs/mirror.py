"""Copies a local run directory to its URL as it grows.

Parquet parts and checkpoints are renamed into place when they are complete, so every copied file is complete too.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from fibec_ray.checkpoints.checkpoint import rounds_kept
from fibec_ray.checkpoints.identity import Identity
from fibec_ray.errors import RunDirError, StorageError
from fibec_ray.files.run_dir import half_made, next_free, refuse_driver, replace_folder
from fibec_ray.files.sealed import read_sealed
from fibec_ray.files.storage import Storage
from fibec_ray.interrupts import signals_interrupt

RUN_JSON = "checkpoints/run.json"
EVERY_S = 10.0
"""Seconds between two copies. A resumed run repeats what was lost with the machine since the last copy."""
TURNS = (
    re.compile(r"data/.*set\.json"), re.compile(r"(data|parts)/"), re.compile(r"config\.yaml$"), re.compile(RUN_JSON),
    re.compile(r"(?!.*manifest\.json$|summary\.json$)"), re.compile(r".*manifest\.json$"), re.compile(""),
)  # fmt: skip
"""The order of copying. Files that refer to others come after them, so that a reader never finds a reference to a file
that is not there yet. Without run.json the copy counts as a stopped start; with it, the run can be resumed."""
Stamp = tuple[int, int]
"""size in bytes, time of change in ns"""


class Mirror:
    """Copies a folder to storage; each `sync` copies only what has changed.

    alike: the storage has the folder's contents already. Otherwise the first `sync` copies everything.
    """

    def __init__(self, storage: Storage, folder: Path, alike: bool):
        self._storage, self._folder = storage, folder
        self._sent = self._stamps() if alike else dict.fromkeys(storage.files(), (-1, -1))

    def sync(self) -> None:
        """Bring the storage up to date. Raises StorageError."""
        now = self._stamps()
        for name in sorted(now, key=turn):
            if self._sent.get(name) != now[name]:
                self._send(name, now[name])
        for name in self._superfluous(now):
            self._storage.remove(name)
            del self._sent[name]

    def _superfluous(self, now: Collection[str]) -> set[str]:
        """Stored files to remove: old checkpoints, and everything of a start that was undone.

        Nothing is removed if the folder was moved or emptied during the run: the storage keeps a logged run.
        """
        gone = self._sent.keys() - set(now)
        if not any(name.startswith("rounds/") for name in self._sent):
            return gone
        whole = RUN_JSON in now and any(name.endswith("manifest.json") for name in now)
        return {name for name in gone if name.startswith("checkpoints/")} if whole else set()

    def _send(self, name: str, stamp: Stamp) -> None:
        try:
            self._storage.upload(self._folder / name, name)
        except StorageError as error:
            if isinstance(error.__cause__, FileNotFoundError) and not (self._folder / name).exists():
                return  # an old checkpoint that was removed just now
            raise
        self._sent[name] = stamp

    def _stamps(self) -> dict[str, Stamp]:
        found: dict[str, Stamp] = {}
        for folder, inner, names in os.walk(self._folder):
            inner[:] = [name for name in inner if not name.startswith(".")]
            for name in (name for name in names if not name.startswith(".")):
                path = Path(folder) / name
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue
                found[path.relative_to(self._folder).as_posix()] = (status.st_size, status.st_mtime_ns)
        return found


def turn(name: str) -> tuple[int, str]:
    """Sort key: the order in which files are copied."""
    return next(number for number, pattern in enumerate(TURNS) if pattern.match(name)), name


@contextmanager
def mirrored(mirror: Mirror, warn: Callable[[str], None]) -> Iterator[None]:
    """Copy every EVERY_S seconds while the block runs, and once more when it ends, for whatever reason.

    A failed copy in between is a warning, because the next one may succeed; a failed last copy is an error.
    """
    done = threading.Event()
    thread = threading.Thread(target=_keep_copying, args=(mirror, done, warn), daemon=True)
    thread.start()
    try:
        with signals_interrupt():
            yield
    finally:
        done.set()
        thread.join()
        mirror.sync()


def _keep_copying(mirror: Mirror, done: threading.Event, warn: Callable[[str], None]) -> None:
    while not done.wait(EVERY_S):
        try:
            mirror.sync()
        except StorageError as error:
            warn(f"{error}; trying again in {EVERY_S:.0f} s")


def make_ready(folder: Path, storage: Storage, warn: Callable[[str], None]) -> bool:
    """Bring the local folder up to date with the URL. Returns False if it holds a newer state of the same run.

    A local run that the URL does not have is moved aside, never removed, and `warn` gets a message.
    """
    names = storage.files()
    if folder.is_dir():
        refuse_driver(folder)
        own, there = _run_id(folder), _run_id_there(storage, names)
        if own is not None and own == there and max(rounds_kept(folder), default=-1) > _newest_there(names):
            return False
        if not half_made(folder) and (own is None or own != there):
            aside = next_free(folder.parent, f"{folder.name}-set-aside")
            folder.rename(aside)
            warn(f"{storage.url} does not have the run in {folder}; that run is now in {aside}")
    draft = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    storage.download(draft, names)
    replace_folder(draft, folder)
    return True


def _run_id(folder: Path) -> str | None:
    try:
        return read_sealed(folder / RUN_JSON, Identity, "the identity of a run").run_id
    except RunDirError:
        return None


def _run_id_there(storage: Storage, names: dict[str, int]) -> str | None:
    if RUN_JSON not in names:
        return None
    with TemporaryDirectory() as draft:
        storage.download(Path(draft), [RUN_JSON])
        return _run_id(Path(draft))


def _newest_there(names: dict[str, int]) -> int:
    """The newest complete checkpoint at the URL. Its manifest is copied last."""
    parts = [name.split("/") for name in names if name.startswith("checkpoints/rounds/")]
    return max((int(p[2]) for p in parts if p[-1] == "manifest.json" and p[2].isdecimal()), default=-1)
