"""Write files and folders completely or not at all; return when they are on the disk."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fibec_ray.errors import RunDirError
from fibec_ray.files.run_dir.paths import reason
from fibec_ray.files.yaml_text import to_yaml


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """An open file that gets its name once all of it is on the disk. Raises RunDirError; nothing half-written stays."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        flush(path.parent)
    except BaseException as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise RunDirError(f"{path}: cannot be written ({reason(error)})") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file completely or not at all."""
    with whole(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file completely or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_yaml(path: Path, value: Mapping[str, Any]) -> None:
    """Write a YAML file completely or not at all."""
    write_text(path, to_yaml(value))


def replace_folder(draft: Path, target: Path) -> None:
    """Replace a folder by a finished draft. The old one moves aside first: a rename cannot replace a full folder."""
    aside = target.with_name(f".{target.name}.old.part")
    shutil.rmtree(aside, ignore_errors=True)
    with suppress(FileNotFoundError):
        os.replace(target, aside)
    os.replace(draft, target)
    shutil.rmtree(aside, ignore_errors=True)


def flush(path: Path) -> None:
    """Make the system write a file, or a folder's names, to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot flush folders
            raise
    finally:
        os.close(handle)


def flush_folder(folder: Path) -> None:
    """`flush` a folder and each file in it."""
    for path in folder.iterdir():
        flush(path)
    flush(folder)
