"""Recognise what a stopped start left in a run directory, and remove it before the next start.

A start marks the folder before it writes anything else, and removes the mark before the first round is logged. So a
marked folder has no rounds, and everything that a run writes there can be removed. Folders without the mark, such as
those of earlier versions, are checked file by file: only files that a start writes are removed.
"""

from __future__ import annotations

import re
import shutil
from contextlib import suppress
from pathlib import Path

LOCK, DRIVER, STARTING = ".lock", ".driver.json", ".starting"
RUN_FILES = frozenset(
    {
        "data", "parts", "system", "config.yaml", "checkpoints", "summary.json", "adapter",
        "rounds", "devices", "layers", "batches", "evaluations",
    }
)  # fmt: skip
"""Names that a run writes into its folder."""
_DRAFTS = re.compile(r"\.(config\.yaml|summary\.json|\.?driver\.json|\.starting|run\.json)\.\d+\.part|\.probe")
"""Unfinished files. (Earlier versions wrote `.probe` to test whether a folder is writable.)"""
_FOREIGN = re.compile(r"\.DS_Store|\._.*|Thumbs\.db|desktop\.ini|\.nfs[0-9a-f]+")
"""Files that operating systems put everywhere; they stay."""
_ROWS = frozenset(f"{which}_rows{kind}.npy" for which in ("train", "test") for kind in ("", ".sizes"))


def half_made(folder: Path) -> bool:
    """True if a new run may begin here: the folder is empty, or holds only leftovers of a start. Raises OSError."""
    names = {path.name for path in folder.iterdir() if not _FOREIGN.fullmatch(path.name)}
    written = {name for name in names if name not in (LOCK, DRIVER, STARTING) and not _DRAFTS.fullmatch(name)}
    if STARTING in names:
        return written <= RUN_FILES
    return written <= {"data", "parts", "config.yaml", "checkpoints"} and _only_a_start(folder, written)


def clear(folder: Path) -> None:
    """Remove what a start wrote, as far as possible, except its mark, the lock and the driver's name."""
    drop_drafts(folder)
    for path in folder.iterdir():
        if path.name in RUN_FILES:
            _remove(path)


def drop_drafts(folder: Path) -> None:
    """Remove unfinished files of a killed driver."""
    for path in folder.iterdir():
        if _DRAFTS.fullmatch(path.name):
            _remove(path)


def holds_run(folder: Path) -> bool:
    """True if anything that a run writes is left."""
    return any(path.name in RUN_FILES for path in folder.iterdir())


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _only_a_start(folder: Path, names: set[str]) -> bool:
    """True if data, files of a user's parts, settings and the identity's folder are as a start leaves them.

    A start writes in this order, so files without complete data are not from a start.
    """
    data = folder / "data"
    whole = "data" in names and _are_our_data(data)
    complete = whole and {path.name for path in data.iterdir()} >= _ROWS
    return (
        ("data" not in names or whole)
        and ("parts" not in names or complete and _are_kept_files(folder / "parts"))
        and ("config.yaml" not in names or complete)
        and ("checkpoints" not in names or all(_DRAFTS.fullmatch(p.name) for p in (folder / "checkpoints").iterdir()))
    )


def _are_kept_files(parts: Path) -> bool:
    if parts.is_symlink() or not parts.is_dir():
        return False
    kept = re.compile(r"[^.].*\.py|\..+\.py\.\d+\.part")
    return all(kept.fullmatch(path.name) and path.is_file() and not path.is_symlink() for path in parts.iterdir())


def _are_our_data(data: Path) -> bool:
    """True if the folder has encoded sets (maybe unfinished), rows of devices, and nothing else."""
    if data.is_symlink() or not data.is_dir():
        return False
    return all(path.name in _ROWS or _is_our_set(path) for path in data.iterdir())


def _is_our_set(folder: Path) -> bool:
    draft = re.fullmatch(r"\.(train|test)\..+", folder.name)
    if folder.is_symlink() or not folder.is_dir() or not (draft or folder.name in ("train", "test")):
        return False
    names = {path.name for path in folder.iterdir()}
    return all(name == "set.json" or name.endswith(".npy") for name in names) and bool(draft or "set.json" in names)
