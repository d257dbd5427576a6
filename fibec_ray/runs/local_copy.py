"""The folder of this machine in which a run behind a URL is worked on: made ready before the run begins or goes on."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from fibec_ray.checkpoints.checkpoint import rounds_kept
from fibec_ray.checkpoints.identity import Identity
from fibec_ray.errors import RunDirError
from fibec_ray.files.run_dir import half_made, next_free, refuse_driver, replace_folder
from fibec_ray.files.sealed import read_sealed
from fibec_ray.files.storage import Storage
from fibec_ray.runs.mirror import RUN_JSON


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
