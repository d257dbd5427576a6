"""Builds an experiment from what a Python caller gives: a path, a name, a dict or an Experiment, plus changes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

import yaml
from pydantic import BaseModel

from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import build_experiment, load_experiment
from fibec_ray.config.names import find_config
from fibec_ray.errors import ConfigError
from fibec_ray.runs.simulation import resolved

Source = Experiment | Mapping[str, Any] | str | Path
"""An experiment, its settings as a dict, the path of its YAML file, or the name of a packaged one."""


def experiment_of(source: Source | None, changes: Mapping[str, Any]) -> Experiment:
    """Build the experiment with some settings changed. Raises ConfigError.

    source: None is experiment.yaml in the working directory.
    changes: by key, as on the command line. A mapping is merged into the settings that it names, key by key; one with
        `kind` replaces them. Keys may have dots: {"local.epochs": 2} is {"local": {"epochs": 2}}.
    """
    overrides = list(overrides_of(changes))
    if isinstance(source, Experiment):
        return build_experiment(resolved(source), overrides, Path(source.name)) if overrides else source
    if source is None or isinstance(source, str | Path):
        return load_experiment(find_config(None if source is None else str(source)), overrides)
    if isinstance(source, Mapping):
        return build_experiment({"name": "experiment"} | _plain(source), overrides, Path("experiment"))
    raise ConfigError(
        "experiment: expected the path of a YAML file, the name of a packaged experiment, a dict or an Experiment, "
        f"found {type(source).__name__}"
    )


def overrides_of(changes: Mapping[str, Any]) -> Iterator[str]:
    """{"rounds": 3, "local": {"epochs": 2}} -> "rounds=3", "local.epochs=2"."""
    for key, value in _flat(changes, ""):
        text = yaml.safe_dump(_plain(value, key), default_flow_style=True, width=math.inf, allow_unicode=True)
        plain = text.removesuffix("\n").removesuffix("\n...")  # YAML marks the end of a value that stands alone
        yield f"{key}={plain}"


def _flat(changes: Mapping[Any, Any], above: str) -> Iterator[tuple[str, Any]]:
    for key, value in changes.items():
        if not isinstance(key, str):
            raise ConfigError(f"{above or 'experiment'}: the key {key!r} is not a string; put it in quotes")
        full = f"{above}.{key}" if above else key
        if isinstance(value, Mapping) and value and "kind" not in value:
            yield from _flat(value, full)
        else:
            yield full, value


def _plain(value: Any, key: str = "") -> Any:
    """The value in types that YAML has: numbers of numpy and torch, paths and parts of a method are converted."""
    if isinstance(value, BaseModel):
        given = value.model_fields_set | {"kind"}  # the rest may have other defaults
        return value.model_dump(mode="json", include=given)
    if isinstance(value, Mapping):
        return {name: _plain(below, f"{key}.{name}" if key else str(name)) for name, below in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(below, key) for below in value]
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Enum):
        return _plain(value.value, key)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if callable(item := getattr(value, "item", None)) and getattr(value, "ndim", 0) == 0:
        return _plain(item(), key)
    raise ConfigError(f"{key or 'experiment'}: expected a plain value, found {type(value).__name__}")
