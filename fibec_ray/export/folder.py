"""The folder that an export writes: free before, and whole or missing after."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fibec_ray.errors import RunDirError
from fibec_ray.files.run_dir import absolute, flush_folder, refused, replace_folder


def free_folder(target: Path) -> Path:
    """The absolute path. Raises RunDirError for a folder that has something in it."""
    target = absolute(target)
    with refused(f"{target}: cannot be written"):
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise RunDirError(f"{target}: is not empty; choose another folder, or remove it")
        target.parent.mkdir(parents=True, exist_ok=True)
    return target


@contextmanager
def drafted(target: Path) -> Iterator[Path]:
    """A folder that gets the name of the target when the block ends well, and is removed otherwise."""
    draft = target.with_name(f".{target.name}.part")
    with refused(f"{target}: cannot be written"):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        try:
            yield draft
            flush_folder(draft)
            replace_folder(draft, target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
