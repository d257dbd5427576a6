"""Folders of prepared base weights that later starts can trust: private, complete and unchanged.

A note in each folder records size, times and digest of every file. A start compares sizes and times, and reads a file
again only if they differ. A changed folder is made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filelock import FileLock
from safetensors import SafetensorError

from fibec_ray.environment import num_cpus
from fibec_ray.errors import ModelError, RunDirError
from fibec_ray.files.run_dir import flush, flush_folder, write_json
from fibec_ray.files.run_dir.paths import reason

NOTE = "prepared.json"
"""file in a prepared folder"""
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
OWN = "set FIBEC_RAY_CACHE to a folder of your own"


def kept(folder: Path, make: Callable[[Path], Sequence[str]]) -> Path:
    """Return the prepared folder; make it if it is missing or has changed. Safe to call concurrently.

    make: writes the files into a given folder and returns the paths of the head's modules. Raises ModelError if the
    folder cannot be written or belongs to another user.
    """
    try:
        with FileLock(f"{folder}.lock", mode=0o600):
            _refuse_foreign(folder)
            if not _is_sound(folder):
                _make(folder, make)
    except OSError as error:
        raise ModelError(_unusable(folder.parent, error)) from error
    return folder


def fingerprint(folder: Path) -> str:
    """Digest of a prepared folder's weights."""
    state, files = hashlib.blake2b(digest_size=16), _read(folder)["files"]
    for name in sorted(name for name in files if name.endswith(".safetensors")):
        state.update(bytes.fromhex(files[name]["digest"]))
    return state.hexdigest()


def head_of(folder: Path) -> list[str]:
    """Paths of the classification head's modules, as `make` returned them to `kept`."""
    return [str(path) for path in _read(folder)["head"]]


def seal(folder: Path, head: Sequence[str]) -> None:
    """Record the files as they are now. Raises OSError or RunDirError."""
    paths = _files(folder)
    stamps = [_stamp(path) for path in paths]  # before reading: a change meanwhile shows at the next start
    files = {
        path.name: {**stamp, "digest": digest}
        for path, stamp, digest in zip(paths, stamps, _digests(paths), strict=True)
    }
    write_json(folder / NOTE, {"head": list(head), "files": files})


def private(folder: Path) -> Path:
    """Return the cache folder, made for this user alone if it is missing. Raises ModelError if others could change it.

    Users do not share a cache, because anyone who can write weights decides what a run computes. A cache folder of
    root, such as a mounted volume, is accepted: each prepared folder in it must belong to this user.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if found.st_uid not in (_user(), 0):
            raise ModelError(f"{folder} belongs to another user, who could change base weights in it; {OWN}")
        if found.st_uid == _user() and found.st_mode & OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
            folder.chmod(stat.S_IMODE(found.st_mode) & ~OTHERS_WRITE)
    except OSError as error:
        raise ModelError(_unusable(folder, error)) from error
    return folder


def _make(folder: Path, make: Callable[[Path], Sequence[str]]) -> None:
    for left in folder.parent.glob(f"{folder.name}.*.part"):  # from dead processes; living ones wait for the lock
        shutil.rmtree(left, ignore_errors=True)
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(mode=0o700)
        seal(part, make(part))
        flush_folder(part)
        _remove(folder)
        os.replace(part, folder)
        flush(folder.parent)
    except (OSError, SafetensorError, RunDirError) as error:
        raise ModelError(
            f"{folder.parent}: base weights cannot be written ({reason(error)}); free some space there, or {OWN}"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _remove(path: Path) -> None:
    """Remove whatever has the name of a prepared folder; a link's target stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _refuse_foreign(folder: Path) -> None:
    """Raise ModelError for files of another user. Remove others' write access, which makes the files be read again."""
    there = [path for path in (folder, *_files(folder)) if path.exists()]
    foreign = [path for path in there if path.lstat().st_uid != _user()]
    if foreign:
        raise ModelError(f"{foreign[0]} belongs to another user, so its weights are not trusted; remove it, or {OWN}")
    for path in there:
        if path.stat().st_mode & OTHERS_WRITE and path.stat().st_uid == _user():
            path.chmod(stat.S_IMODE(path.stat().st_mode) & ~OTHERS_WRITE)


def _is_sound(folder: Path) -> bool:
    """True if all files are as prepared and the folder has no others.

    Records new times of files that were only touched.
    """
    try:
        note = _read(folder)
        if set(note["files"]) != {path.name for path in _files(folder)}:
            return False
        changed = [name for name, noted in note["files"].items() if not _stamp(folder / name).items() <= noted.items()]
        if _digests([folder / name for name in changed]) != [note["files"][name]["digest"] for name in changed]:
            return False
        if changed:
            seal(folder, note["head"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, RunDirError):
        return False
    return True


def _read(folder: Path) -> dict[str, Any]:
    note: dict[str, Any] = json.loads((folder / NOTE).read_text(encoding="utf-8"))
    return note


def _files(folder: Path) -> list[Path]:
    """The files that the note covers. Hidden files, which some systems create everywhere, are ignored."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name != NOTE and not path.name.startswith("."))


def _stamp(path: Path) -> dict[str, int]:
    """Size and times of a file. Its ctime changes with every write, even if its mtime is set back."""
    found = path.stat()
    return {"size": found.st_size, "mtime_ns": found.st_mtime_ns, "ctime_ns": found.st_ctime_ns}


def _digests(paths: Sequence[Path]) -> list[str]:
    """Digests of files, which are read in parallel: hashing takes longer than a fast disk."""
    with ThreadPoolExecutor(num_cpus(), "digest") as threads:
        return list(threads.map(_digest, paths))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def _user() -> int:
    return os.getuid() if hasattr(os, "getuid") else 0


def _unusable(folder: Path, error: OSError) -> str:
    why = "it is a file" if isinstance(error, FileExistsError) else reason(error)
    return f"{folder}: cannot hold base weights ({why}); {OWN}"
