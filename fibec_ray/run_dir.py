"""The run directory: made once, written to whole or not at all; used by the simulation and the CLI."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from fibec_ray.errors import RunDirError


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


def clear(path: Path) -> None:
    """Makes a run directory empty again, for a run that was refused before it began."""
    for entry in path.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


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
