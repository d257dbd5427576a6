"""Load YAML files and `key=value` overrides as one validated Experiment. Every mistake raises one ConfigError.

`method`, `task` and `backbone` can be names: `method: fibecfed` is the file `methods/fibecfed.yaml`, of the user or
packaged (names.py). Overrides are applied from the shallowest key to the deepest, so their order does not matter:
`method.sharing.fraction=0.25 method=fibecfed` sets the fraction of fibecfed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from fibec_ray.config.device_files import with_kept_files
from fibec_ray.config.experiment import Experiment
from fibec_ray.config.explain import explain
from fibec_ray.config.limits import refuse_flags
from fibec_ray.config.names import GROUPS, find
from fibec_ray.config.overrides import in_order, set_key, with_implied
from fibec_ray.config.own_data import replace_embedded_task, with_own_data
from fibec_ray.config.reading import parse_override, read_yaml
from fibec_ray.data.settings import DataConfig
from fibec_ray.effects import without_idle
from fibec_ray.errors import ConfigError
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.learning.job import LocalTraining
from fibec_ray.method import AXES, Method
from fibec_ray.tasks import without_former

KINDS = ("kind", "of")
"""Keys below an axis whose value may be a part's kind."""


def load_experiment(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Load an experiment from a file, with overrides. Raises ConfigError."""
    return build_experiment(read_yaml(path), overrides, path)


def load_saved(path: Path, overrides: Sequence[str] = ()) -> Experiment:
    """Load the config.yaml of a run, with overrides; runs of earlier releases may hold settings without effect."""
    return build_experiment(without_old_settings(read_yaml(path)), overrides, path)


def without_old_settings(raw: dict[str, Any]) -> dict[str, Any]:
    """raw: settings of a run, without those that have no effect; they did not change its results."""
    sections: dict[str, type[BaseModel]] = {"fleet": FleetConfig, "local": LocalTraining}
    new = {key: without_idle(sections[key], raw[key]) for key in sections if isinstance(raw.get(key), dict)}
    if isinstance(raw.get("task"), dict):
        new["task"] = without_former(raw["task"])
    fleet = new.get("fleet", {})
    if fleet.get("kind") == "local" and 0 < (fleet.get("gpus_per_actor") or 0) < 1:
        del fleet["gpus_per_actor"]  # one process has a whole GPU anyway
    return raw | new


def build_experiment(raw: dict[str, Any], overrides: Sequence[str], path: Path) -> Experiment:
    """Build an experiment from plain values and overrides. Raises ConfigError.

    path: the file of the values, real or not; methods and user-defined parts are looked up beside it.
    """
    raw = with_paths(raw, path.parent)
    pairs = in_order(with_implied([parse_override(with_path(text, Path())) for text in overrides]))
    for keys, value in pairs:
        if len(keys) == 1:
            raw[keys[0]] = value
    for group in GROUPS:
        if isinstance(raw.get(group), str):
            found = find(group, raw[group], path)
            raw[group] = with_paths({group: read_yaml(found)}, found.parent)[group]
    for keys, value in pairs:
        if len(keys) > 1:
            set_key(raw, keys, value)
    return check(replace_embedded_task(raw, {tuple(keys) for keys, _ in pairs}), str(path))


def check(raw: dict[str, Any], where: str) -> Experiment:
    """Validate plain values as an Experiment. Raises ConfigError, which names the key and what is allowed."""
    try:
        raw = with_own_data(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: data.{explain(error, DataConfig, raw['data'])}") from error
    if "task" not in raw:
        raise ConfigError(
            f"{where}: task: is missing; set it to a task's name, or set data.path=FILE for your own data"
        )
    try:
        experiment = Experiment.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain(error, Experiment, raw)}") from error
    refuse_flags(raw, experiment.model_dump(), "")
    return experiment


def load_method(path: Path) -> Method:
    """The method in a YAML file. Raises ConfigError."""
    raw = with_paths({"method": read_yaml(path)}, path.parent)["method"]
    try:
        return Method.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Method, raw)}") from error


def with_paths(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make the paths of Python files with parts absolute; in YAML they are relative to the YAML file.

    raw: settings of an experiment. folder: of the YAML. Runs and jobs keep copies in a folder `parts` beside it.
    """
    raw = with_kept_files(raw, folder)
    located: dict[str, Any] = {key: _located(raw[key], folder, "kind") for key in ("sampler", "schedule") if key in raw}
    if isinstance(raw.get("method"), dict):
        located["method"] = _located(raw["method"], folder)
    return {**raw, **located}


def _located(value: Any, folder: Path, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _located(below, folder, str(name)) for name, below in value.items()}
    place, colon, name = value.rpartition(":") if isinstance(value, str) and key in (*AXES, *KINDS) else ("", "", "")
    if not place.endswith(".py"):
        return value
    place = os.path.expanduser(place)
    beside, kept = (os.path.abspath(folder / within / place) for within in ("", "parts"))
    return f"{kept if os.path.isfile(kept) and not os.path.exists(beside) else beside}{colon}{name}"


def with_path(text: str, folder: Path) -> str:
    """Do the same for one override, `key=value`, from a file in this folder."""
    keys, value = parse_override(text)
    if keys[0] not in ("method", "sampler", "schedule"):
        return text
    located = _located(value, folder, "kind" if len(keys) == 1 and keys[0] != "method" else keys[-1])
    return text if located == value else f"{text.partition('=')[0]}={json.dumps(located)}"


def first_difference(found: Any, wanted: Any, at: str = "") -> str:
    """Describe the first difference: 'local.learning_rate is 0.01 there, 0.003 here'."""
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return f"{at} is {found!r} there, {wanted!r} here"
    for key in {**wanted, **found}:
        if found.get(key) != wanted.get(key):
            return first_difference(found.get(key), wanted.get(key), f"{at}.{key}" if at else str(key))
    return "its settings are of other kinds"
