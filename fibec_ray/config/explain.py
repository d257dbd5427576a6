"""Turn pydantic's errors into one sentence for the person who wrote the YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError

from fibec_ray.config.aliases import ALIASES, HINTS
from fibec_ray.config.choices import CHOICES
from fibec_ray.errors import did_you_mean, nearest
from fibec_ray.method import AXES
from fibec_ray.models.kinds import NAMED
from fibec_ray.parts.part import class_of
from fibec_ray.tasks import DEFAULT, TASKS

LONGEST = 200
"""Longest value to show, in characters."""

Loc = tuple[int | str, ...]

REGISTRIES: dict[str, Mapping[str, type[BaseModel]]] = {
    **AXES,
    "of": AXES["aggregator"],
    **{keys[-1]: kinds for keys, kinds in CHOICES.items()},
    "backbone": NAMED,
    "task": TASKS,
}
"""Keys whose value is one of several models, chosen by `kind`."""


def explain(error: ValidationError, root: type[BaseModel], raw: Mapping[str, Any]) -> str:
    """Describe the most informative error: key, value found, what is allowed. root: the model of `raw`."""
    # An unknown key explains a missing one: a misspelt `rounds` is both.
    item = min(error.errors(), key=lambda item: (item["type"] != "extra_forbidden", len(item["loc"])))
    loc = item["loc"]
    where = ".".join(str(part) for part in loc)
    if item["type"] == "extra_forbidden":
        return f"{where}: no such key; {_instead(root, raw, loc)}"
    if item["type"] == "missing":
        return f"{where}: is missing; set it"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, found {_shown(item['input'])}"
    if item["type"] in ("literal_error", "enum") and isinstance(item["input"], str):
        near = nearest(item["input"], re.findall(r"'([^']+)'", str(item["ctx"]["expected"])))
        message += f"; did you mean '{near}'?" if near else ""
    return f"{where}: {message}" if where else message


def _instead(root: type[BaseModel], raw: Mapping[str, Any], loc: Loc) -> str:
    """Advise what to write instead of an unknown key: a key beside it, another kind, or a key elsewhere."""
    model, key = _model_at(root, raw, loc[:-1]), str(loc[-1])
    known = model.model_fields if model else {}
    at = str(loc[-2]) if len(loc) > 1 else ""
    if at in REGISTRIES and "kind" in known:
        able = [kind for kind, cls in REGISTRIES[at].items() if key in cls.model_fields]
        if able:
            place = ".".join(map(str, loc[:-1]))
            return f"kind {known['kind'].default} does not have it; set {place}.kind to {' or '.join(able)}"
    if near := nearest(key, known):
        return f"did you mean '{near}'?"
    short = HINTS | ALIASES
    if len(loc) <= 2 and (elsewhere := short.get(nearest(key, short) or "") or _only_place(root, key)):
        return f"did you mean '{elsewhere}'?"
    return did_you_mean(key, known)


def _only_place(root: type[BaseModel], key: str) -> str | None:
    """Find the only section with a key of this name. None if several have it, such as `batch_size`."""
    sections = {name: type(field.default) for name, field in root.model_fields.items()}
    found = [
        f"{name}.{key}"
        for name, cls in sections.items()
        if isinstance(cls, type) and issubclass(cls, BaseModel) and key in cls.model_fields
    ]
    return found[0] if len(found) == 1 else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _model_at(root: type[BaseModel], raw: Any, loc: Loc) -> type[BaseModel] | None:
    """Return the model of the value at `loc`; None if it is not one of ours."""
    model: Any = root
    for part in loc:
        field = model.model_fields.get(str(part)) if isinstance(model, type) and issubclass(model, BaseModel) else None
        raw = raw.get(part) if isinstance(raw, Mapping) else None
        default = field.default if field is not None else None
        model = type(default) if isinstance(default, BaseModel) else field and field.annotation
        if part in REGISTRIES and isinstance(raw, Mapping):
            kind = raw.get("kind", DEFAULT if part == "task" else None)
            model = REGISTRIES[str(part)].get(str(kind)) or _own(str(part), raw) or model
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def _own(key: str, raw: Mapping[str, Any]) -> type[BaseModel] | None:
    """Return the class of a user-defined part, if one is named there."""
    if key not in AXES and key != "of":
        return None
    with suppress(ValueError):
        return class_of(raw, REGISTRIES[key])  # type: ignore[type-var]
    return None
