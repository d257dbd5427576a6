"""Files of a run or sweep directory, read as keys and values and written whole; used by report.py and sweeps.py."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from fibec_ray.errors import RunDirError

FINISHED = "finished"
"""The `status` in summary.json of a run that came to its end."""


def read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file that holds a mapping; empty where there is no file."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise RunDirError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise RunDirError(f"{path}: should hold keys and values, holds {type(found).__name__}")
    return found


def replace_file(path: Path, content: bytes) -> None:
    """Whoever looks at the path sees the old file or the new one, never a half."""
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    except OSError as error:
        raise RunDirError(f"{path}: cannot be written: {error.strerror}") from error
