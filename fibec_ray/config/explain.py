"""Turns pydantic's findings into one sentence for the person who wrote the YAML."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ValidationError

from fibec_ray.data.partition import PARTITIONS
from fibec_ray.errors import did_you_mean
from fibec_ray.method import AXES
from fibec_ray.models.nets import NETS
from fibec_ray.parts.part import class_of

LONGEST = 200
"""Characters of a value that is shown."""

Loc = tuple[int | str, ...]

REGISTRIES: dict[str, Mapping[str, type[BaseModel]]] = {
    **AXES,
    "of": AXES["aggregator"],
    "partition": PARTITIONS,
    "backbone": NETS,
}
"""Keys whose value is one of several models, told apart by its `kind`."""


def explain(error: ValidationError, root: type[BaseModel], raw: Mapping[str, Any]) -> str:
    """The most telling mistake: key, what was found, what is allowed. root: the model that `raw` was validated as."""
    # An unknown key explains a missing one: a misspelt `rounds` is both.
    item = min(error.errors(), key=lambda item: (item["type"] != "extra_forbidden", len(item["loc"])))
    loc = item["loc"]
    where = ".".join(str(part) for part in loc)
    if item["type"] == "extra_forbidden":
        model = _model_at(root, raw, loc[:-1])
        return f"{where}: no such key; {did_you_mean(str(loc[-1]), model.model_fields if model else ())}"
    if item["type"] == "missing":
        return f"{where}: is missing; set it"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}, found {_shown(item['input'])}"
    return f"{where}: {message}" if where else message


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _model_at(root: type[BaseModel], raw: Any, loc: Loc) -> type[BaseModel] | None:
    """The model that the value at `loc` was validated as; None where it is none of ours."""
    model: Any = root
    for part in loc:
        field = model.model_fields.get(str(part)) if isinstance(model, type) and issubclass(model, BaseModel) else None
        raw = raw.get(part) if isinstance(raw, Mapping) else None
        default = field.default if field is not None else None
        model = type(default) if isinstance(default, BaseModel) else field and field.annotation
        if part in REGISTRIES and isinstance(raw, Mapping):
            model = REGISTRIES[str(part)].get(str(raw.get("kind"))) or _own(str(part), raw) or model
    return model if isinstance(model, type) and issubclass(model, BaseModel) else None


def _own(key: str, raw: Mapping[str, Any]) -> type[BaseModel] | None:
    """The class of a user's own part, if that is what is named there."""
    if key not in AXES and key != "of":
        return None
    with suppress(ValueError):
        return class_of(raw, REGISTRIES[key])  # type: ignore[type-var]
    return None
