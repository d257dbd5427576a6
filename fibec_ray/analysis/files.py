"""Reads and writes files of a run or sweep directory: keys and values, written whole."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from fibec_ray.errors import RunDirError

FINISHED = "finished"
"""The `status` in summary.json of a run that came to its end."""


def parsed(name: str, text: str) -> dict[str, Any]:
    """The mapping that a JSON file (by its name) or a YAML file holds; empty for an empty one. Raises RunDirError."""
    if not text:
        return {}
    try:
        found = json.loads(text) if name.endswith(".json") else _yaml(text)
    except Exception as error:  # besides its own errors PyYAML lets those of int(), date() and the like through
        raise RunDirError(f"{name}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise RunDirError(f"{name}: should hold keys and values, holds {type(found).__name__}")
    return found


def _yaml(text: str) -> Any:
    """As yaml.safe_load, but ten times as fast where libyaml is there."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def replace_file(path: Path, content: bytes) -> None:
    """Whoever looks at the path sees the old file or the new one, never a half."""
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
