"""Reads a sweep file, together with the one that it extends. Called by load.py.

    extends: accuracy.yaml                      # a sweep file, relative to this one
    overrides: [backbone=minilm]                # come after those of the other file
    variants:
      fedavg: [local.epochs=1]                  # comes after the other file's overrides of fedavg
    tasks: [trec, mr]                           # picks tasks; a mapping adds to their overrides, as in `variants`

Other keys replace those of the other file.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from fibec_ray.config.load import with_path
from fibec_ray.config.names import SUFFIXES, find_config
from fibec_ray.config.reading import read_yaml
from fibec_ray.errors import ConfigError, did_you_mean

ADDED = ("overrides", "variants", "tasks")
"""Keys that add to those of the other file."""


def read_sweep(path: Path, above: Sequence[Path] = ()) -> dict[str, Any]:
    """Return the keys of a sweep file, with absolute paths, so that another file can extend it. Raises ConfigError.

    above: files that extend this one.
    """
    raw = read_yaml(path)
    _refuse_twice(path)
    base = raw.pop("extends", None)
    own = {key: _located(value, path.parent) for key, value in raw.items()}
    if isinstance(own.get("config"), str):
        own["config"] = _config(own["config"], path)
    if base is None:
        return own
    if not isinstance(base, str) or not base.endswith(SUFFIXES):
        raise ConfigError(f"{path}: extends: expected a sweep file such as accuracy.yaml, found {base!r}")
    other = (path.parent / base).resolve()
    if other in (path.resolve(), *above):
        raise ConfigError(f"{path}: extends: {base} is this file, or extends it; name another file")
    return _extended(read_sweep(other, [*above, path.resolve()]), own, path)


def _extended(base: dict[str, Any], own: dict[str, Any], path: Path) -> dict[str, Any]:
    if isinstance(base.get("tasks"), dict) and isinstance(own.get("tasks"), list):
        base = base | {"tasks": picked_tasks(base["tasks"], own["tasks"], f"{path}: tasks")}
        own = {key: value for key, value in own.items() if key != "tasks"}
    return base | own | {key: _added(base[key], own[key]) for key in ADDED if key in base and key in own}


def _added(base: Any, own: Any) -> Any:
    """Join two lists, and two mappings key by key; another value replaces the base."""
    if isinstance(base, list) and isinstance(own, list):
        return [*base, *own]
    if isinstance(base, dict) and isinstance(own, dict):
        return base | {key: _added(base[key], value) if key in base else value for key, value in own.items()}
    return own


def picked_tasks(tasks: dict[str, Any], names: Sequence[Any], where: str) -> dict[str, Any]:
    """Some of a sweep's tasks, in the order of `names`. Raises ConfigError for a name that the sweep does not have."""
    for name in names:
        if name not in tasks:
            raise ConfigError(f"{where}: the sweep has no task {name!r}; {did_you_mean(str(name), tasks)}")
    return {name: tasks[name] for name in names}


def _config(text: str, path: Path) -> str:
    """The experiment that the sweep file `path` names: a file beside it, or the name of a packaged one."""
    beside = path.parent / text
    if not text or beside.exists() or text.endswith(SUFFIXES):
        return str(beside) if text else text
    try:
        return str(find_config(text))
    except ConfigError as error:
        raise ConfigError(f"{path}: config: {error}") from error


def _located(value: Any, folder: Path) -> Any:
    """Make paths in overrides absolute, at any depth. Malformed overrides stay; load.py reports them."""
    if isinstance(value, dict):
        return {name: _located(below, folder) for name, below in value.items()}
    return [_located_text(text, folder) for text in value] if isinstance(value, list) else value


def _located_text(text: Any, folder: Path) -> Any:
    if isinstance(text, str):
        with suppress(ConfigError):
            return with_path(text, folder)
    return text


def _refuse_twice(path: Path) -> None:
    """Refuse a key that is in a mapping twice: YAML would drop the first."""
    stack: list[yaml.Node | None] = [yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)]
    while stack:
        node = stack.pop()
        if isinstance(node, yaml.MappingNode):
            seen: set[str] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    raise ConfigError(
                        f"{path}: line {key.start_mark.line + 1}: '{key.value}' is there twice; rename one"
                    )
                seen.add(str(key.value))
                stack.append(value)
        elif isinstance(node, yaml.SequenceNode):
            stack.extend(node.value)
