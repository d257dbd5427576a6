"""A run directory whose home is a URL: worked on in a folder of this machine, copied there as it grows.

Parquet parts and checkpoints are renamed into place when they are whole, so that whatever is copied is whole too.
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
"""Between two copies; what is newer than that may be lost with the machine, and is run again by a resumed run."""
TURNS = (
    re.compile(r"data/.*set\.json"), re.compile(r"(data|parts)/"), re.compile(r"config\.yaml$"), re.compile(RUN_JSON),
    re.compile(r"(?!.*manifest\.json$|summary\.json$)"), re.compile(r".*manifest\.json$"), re.compile(""),
)  # fmt: skip
"""The order of copying: files that promise others come after them, so that a reader there never trusts what has not
come yet. Until run.json is there, what has come is seen to be a stopped start; from then on it can be resumed."""
Stamp = tuple[int, int]
"""size in bytes, time of change in ns"""


class Mirror:
    """`sync` as often as one likes: only what has changed travels.

    alike: the folder is what the home has. Otherwise all of it is copied first.
    """

    def __init__(self, storage: Storage, folder: Path, alike: bool):
        self._storage, self._folder = storage, folder
        self._sent = self._stamps() if alike else dict.fromkeys(storage.files(), (-1, -1))

    def sync(self) -> None:
        """Makes the home as the folder is now. Raises StorageError."""
        now = self._stamps()
        for name in sorted(now, key=turn):
            if self._sent.get(name) != now[name]:
                self._send(name, now[name])
        for name in self._superfluous(now):
            self._storage.remove(name)
            del self._sent[name]

    def _superfluous(self, now: Collection[str]) -> set[str]:
        """Files that the home need not have any more: old checkpoints, and all of a start that was undone.

        If the folder was moved or emptied during the run, nothing is removed: the home keeps a logged run.
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
    """When a file is copied, among others."""
    return next(number for number, pattern in enumerate(TURNS) if pattern.match(name)), name


@contextmanager
def mirrored(mirror: Mirror, warn: Callable[[str], None]) -> Iterator[None]:
    """Copies every EVERY_S seconds while the block runs, and once more when it ends, however it ends.

    A copy in between that fails is a warning, for the next one may do better; the last one's failure is an error.
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
    """Has the folder hold what the URL has. False: it holds a newer state of the same run, which was never copied.

    A run of an earlier driver that the URL does not have is never removed: it moves aside, and `warn` gets a line.
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
            warn(f"{storage.url} does not have the run that was worked on in {folder}; it is now in {aside}")
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
    """Of the checkpoints behind the URL that are whole: the manifest comes last."""
    parts = [name.split("/") for name in names if name.startswith("checkpoints/rounds/")]
    return max((int(p[2]) for p in parts if p[-1] == "manifest.json" and p[2].isdecimal()), default=-1)
