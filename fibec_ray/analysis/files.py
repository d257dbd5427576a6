"""Read YAML and JSON files of a run or sweep directory, and write files atomically."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from fibec_ray.errors import RunDirError

FINISHED = "finished"
"""`status` in the summary.json of a finished run."""


def parsed(name: str, text: str) -> dict[str, Any]:
    """Parse a mapping from JSON (a name that ends in .json) or YAML; {} for an empty file. Raises RunDirError."""
    if not text:
        return {}
    try:
        found = json.loads(text) if name.endswith(".json") else _yaml(text)
    except Exception as error:  # PyYAML also raises errors of int(), date() and others
        raise RunDirError(f"{name}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise RunDirError(f"{name}: should hold keys and values, holds {type(found).__name__}")
    return found


def _yaml(text: str) -> Any:
    """yaml.safe_load, ten times as fast where libyaml is installed."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def replace_file(path: Path, content: bytes) -> None:
    """Write a file atomically: readers see the old content or the new one, never a part."""
    if not path.name or (path.exists() and not path.is_file()):  # a device must not be replaced
        raise RunDirError(f"{path}: is not a file; give the path of a file")
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except (OSError, ValueError) as error:
        with suppress(OSError):
            unfinished.unlink()
        raise RunDirError(f"{path}: cannot be written: {getattr(error, 'strerror', None) or error}") from error
