"""Apply `key=value` overrides to the settings of an experiment.

A key below a part belongs to the part's kind, or to the default kind if none is named. A new `kind` keeps the settings
that both kinds share and drops the others.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from fibec_ray.config.choices import CHOICES, Registry
from fibec_ray.config.experiment import Experiment
from fibec_ray.effects import idle, selectors
from fibec_ray.errors import ConfigError
from fibec_ray.method import AXES
from fibec_ray.models.kinds import BACKBONES, NAMED
from fibec_ray.parts.part import class_of


def with_implied(pairs: Sequence[tuple[list[str], Any]]) -> list[tuple[list[str], Any]]:
    """Adds `partition.kind=by_column` to `partition.column=user_id` unless the kind is set too."""
    changed = [keys for keys, _ in pairs]
    implied = ["partition", "column"] in changed and not any(
        keys in (["partition"], ["partition", "kind"]) for keys in changed
    )
    return [*pairs, *([(["partition", "kind"], "by_column")] if implied else [])]


def in_order(pairs: Sequence[tuple[list[str], Any]]) -> list[tuple[list[str], Any]]:
    """Sort overrides from the shallowest key to the deepest. At equal depth, `kind` and the like come first."""
    return sorted(pairs, key=lambda pair: (len(pair[0]), pair[0][-1] not in {"kind", *selectors(_section(pair[0]))}))


def set_key(raw: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """Set a nested key of plain settings. Raises ConfigError for a key below a plain value."""
    inner = raw
    for depth, key in enumerate(keys[:-1], start=1):
        at = keys[:depth]
        below = inner.get(key)
        if below is None:
            below = _default_of(at)
        elif isinstance(below, str) and registry_at(at) is not None:
            below = {"kind": below}
        elif not isinstance(below, dict):
            raise ConfigError(f"{'.'.join(keys)}: {'.'.join(at)} is {below!r} and has no keys below it")
        inner[key] = inner = dict(below)
    for name in _dropped(inner, keys, value):
        inner.pop(name, None)
    inner[keys[-1]] = value


def registry_at(keys: Sequence[str]) -> Registry | None:
    """Return the kinds to choose from at a key, such as an axis or the partition. None: there is no choice."""
    if tuple(keys) in CHOICES:
        return CHOICES[tuple(keys)]
    if list(keys) == ["backbone"]:
        return NAMED
    if keys[0] == "method" and len(keys) > 1:
        return AXES["aggregator"] if keys[-1] == "of" else AXES.get(keys[-1])
    return None


def _default_of(keys: Sequence[str]) -> dict[str, Any]:
    """Return the settings to start from if a section is missing."""
    return {"kind": Experiment.model_fields["partition"].default.kind} if list(keys) == ["partition"] else {}


def _dropped(inner: Mapping[str, Any], keys: Sequence[str], value: Any) -> set[str]:
    """Return the keys that have no effect once a key has its new value."""
    registry = registry_at(keys[:-1]) if len(keys) > 1 else None
    if registry is None or keys[-1] != "kind":
        return idle(_section(keys), keys[-1], value)
    before, after = (_class(spec, registry, keys) for spec in (inner, {"kind": value}))
    if before is None or after is None or before is after:
        return set()
    return {name for name in inner if _origin(before, name) is not _origin(after, name)}


def _class(spec: Mapping[str, Any], registry: Registry, keys: Sequence[str]) -> type[BaseModel] | None:
    """Return the model of a mapping with this kind; None if there is none, which validation reports."""
    if "kind" not in spec:
        return BACKBONES[""] if keys[0] == "backbone" else next(iter(registry.values()))
    if keys[0] != "method":
        return registry.get(str(spec["kind"]))
    try:
        return class_of(spec, registry)  # type: ignore[type-var]
    except ValueError:
        return None


def _origin(model: type[BaseModel], name: str) -> type | None:
    """Return the class that declares a field."""
    return next((cls for cls in model.__mro__ if name in inspect.get_annotations(cls)), None)


def _section(keys: Sequence[str]) -> type[BaseModel]:
    """Return the model of a key's section, such as `fleet`."""
    field = Experiment.model_fields.get(keys[0]) if len(keys) == 2 else None
    return type(field.default) if field is not None and isinstance(field.default, BaseModel) else BaseModel
