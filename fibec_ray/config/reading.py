"""Read YAML files and `key=value` overrides as plain values. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from fibec_ray.config.aliases import expand
from fibec_ray.config.limits import refuse_nonsense
from fibec_ray.config.names import near_file
from fibec_ray.errors import ConfigError


def early_settings(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The experiment's settings outside of methods, tasks and backbones, as they are written; nothing is checked.

    For work that can begin before the settings are checked. Raises ConfigError for a file or override that cannot be
    read.
    """
    raw = read_yaml(path)
    for keys, value in sorted(map(parse_override, overrides), key=lambda pair: len(pair[0])):
        section = raw
        for key in keys[:-1]:
            below = section.get(key)
            section[key] = section = dict(below) if isinstance(below, dict) else {}
        section[keys[-1]] = value
    return raw


def read_yaml(path: Path) -> dict[str, Any]:
    """The keys and values of a YAML file. Raises ConfigError if it cannot be read or holds anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        near = near_file(path) or "; give the path of a YAML file"
        raise ConfigError(f"{path}: cannot be read ({error.strerror}){near}") from error
    except ValueError as error:  # not UTF-8, or not a valid path
        raise ConfigError(f"{path}: not YAML ({error}); give the path of a YAML file") from error
    raw = _parse(text, f"{path}: not YAML")
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected keys and values, found {type(raw).__name__}")
    refuse_nonsense(raw, str(path))
    return raw


def parse_override(text: str) -> tuple[list[str], Any]:
    """Parse `local.batch_size=4` or `batch_size=4` -> (["local", "batch_size"], 4). Values are YAML."""
    key, sign, value = text.partition("=")
    keys = key.strip().split(".")
    if not sign or not all(keys):
        raise ConfigError(f"'{text}': expected key=value, such as rounds=20 or local.batch_size=4")
    parsed = _parse(value, f"'{text}': the value is not YAML")
    refuse_nonsense(parsed, "", keys)
    return expand(keys, parsed)


def _parse(text: str, complaint: str) -> Any:
    try:
        return yaml.safe_load(text)
    except Exception as error:  # PyYAML also raises the errors of int(), date() and others
        raise ConfigError(f"{complaint} ({' '.join(str(error).split())})") from error
