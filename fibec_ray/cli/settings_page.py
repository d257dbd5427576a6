"""The page of settings, docs/settings.md, made from the experiment's own types."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from fibec_ray.config.choices import CHOICES
from fibec_ray.config.experiment import Experiment
from fibec_ray.effects import OnlyWith
from fibec_ray.fleets.settings import ActorClass
from fibec_ray.models.kinds import BACKBONES
from fibec_ray.samplers import SAMPLERS
from fibec_ray.schedules import SCHEDULES
from fibec_ray.tasks import TASKS

_INTRODUCTION = """# Settings

<!-- Generated: python -m fibec_ray.cli.reference -->

Every key of an experiment's YAML file. Set it in the file, or on the command line as `key=value`, with a dot between
the levels: `fibec-ray run quickstart local.learning_rate=1e-3`. `fibec-ray show CONFIG` prints an experiment with
every default filled in. A key without a default must be set. The parts of a method have their own page:
[methods](methods.md).
"""

_SECTIONS: Mapping[str, tuple[str, Mapping[str, type[BaseModel]]]] = {
    "partition": ("How rows are dealt to devices. `kind` chooses the rule.", CHOICES[("partition",)]),
    "system": (
        "Simulated devices: their speed, their links, the energy they use. `kind` is simple if it is not set. See "
        "[devices](devices.md).",
        CHOICES[("system",)],
    ),
    "backbone": (
        "The frozen base model. With `kind` it is a small network that devices train from scratch.",
        BACKBONES,
    ),
    "sampler": ("Which devices start to train. `kind` chooses the rule.", SAMPLERS),
    "schedule": ("When the server combines updates. `kind` chooses the rule.", SCHEDULES),
    "task": ("The data set. `task: trec` names a file of `configs/tasks/`. `kind` is text if it is not set.", TASKS),
}
"""Sections that offer a choice of types, by kind; '' needs no kind."""

_INNER: Mapping[str, tuple[str, Mapping[str, type[BaseModel]]]] = {
    "system.availability": ("When devices can be drawn for a round.", CHOICES["system", "availability"]),
}
"""Sections inside other sections that offer a choice. Each has its own tables after those."""


def settings_page() -> str:
    """The page docs/settings.md."""
    plain, sections = [], []
    for name, field in Experiment.model_fields.items():
        model = _model(field.annotation)
        if name == "method":
            plain.append(_row(name, field, "name, mapping", "a [method](methods.md), or its parts"))
        elif name in _SECTIONS:
            sections.append(_choices(name, *_SECTIONS[name]))
            sections += [_choices(key, *inner) for key, inner in _INNER.items() if key.startswith(f"{name}.")]
        elif model is not None:
            sections.append(_section(name, model))
        else:
            plain.append(_row(name, field))
    sections.append(_section("fleet.classes", ActorClass, "Each entry of the list `fleet.classes`."))
    return "\n\n".join([_INTRODUCTION.strip(), "## The experiment", _table(plain), *sections]) + "\n"


def _section(name: str, model: type[BaseModel], text: str = "") -> str:
    return "\n\n".join([f"## `{name}`", text or _doc(model), _table(list(_rows(name, model)))])


def _choices(name: str, text: str, kinds: Mapping[str, type[BaseModel]]) -> str:
    parts = [f"## `{name}`", text]
    for kind, model in kinds.items():
        but = ("kind",) if kind else ()
        parts += [f"### `{name}.kind={kind}`" if kind else "", _doc(model), _table(list(_rows(name, model, *but)))]
    return "\n\n".join(filter(None, parts))


def _rows(prefix: str, model: type[BaseModel], *but: str) -> Iterator[str]:
    """One row per setting; sections inside are walked."""
    for name, field in model.model_fields.items():
        if name in but:
            continue
        inner = _model(field.annotation)
        if f"{prefix}.{name}" in _INNER:
            yield _row(f"{prefix}.{name}", field, "name, mapping")
        elif inner is not None and inner is not ActorClass:
            yield from _rows(f"{prefix}.{name}", inner)
        else:
            yield _row(f"{prefix}.{name}", field)


def _row(key: str, field: FieldInfo, kind: str = "", text: str = "") -> str:
    needs = [
        f"only with {mark.field}: {' or '.join(mark.values)}" for mark in field.metadata if isinstance(mark, OnlyWith)
    ]
    meaning = "; ".join([text or field.description or "", *needs])
    cells = (f"`{key}`", kind or _type(field.annotation, field), _default(field), meaning)
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _table(rows: list[str]) -> str:
    return "\n".join(["| setting | values | default | meaning |", "|---|---|---|---|", *rows]) if rows else ""


def _model(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, alone or beside None."""
    found = [each for each in (annotation, *get_args(annotation)) if inspect.isclass(each)]
    models = [each for each in found if issubclass(each, BaseModel)]
    return models[0] if models else None


_NAMES = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`", type(None): "`null`"}


def _type(annotation: Any, field: FieldInfo | None = None) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is Annotated:
        return _type(arguments[0]) + _range(arguments[1:])
    if origin in (Union, types.UnionType):
        return ", ".join(
            _type(each) + (_range(field.metadata) if field and each in (int, float) else "") for each in arguments
        )
    if origin in (tuple, list):
        return "list"
    if origin is dict:
        return "mapping"
    return _NAMES.get(annotation, "mapping") + (_range(field.metadata) if field else "")


def _range(metadata: Any) -> str:
    """' >= 1', from the bounds of a field."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    items = [each for one in metadata for each in (one, *getattr(one, "metadata", ()))]
    bounds = [
        f" {sign} {_number(getattr(item, name))}"
        for item in items
        for name, sign in signs.items()
        if hasattr(item, name)
    ]
    return "".join(bounds)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return ""
    if isinstance(value, BaseModel):
        return f"`{getattr(value, 'kind', getattr(value, 'name', ''))}`"
    shown = {None: "null", True: "true", False: "false", (): "[]"}.get(value) if not isinstance(value, dict) else None
    if isinstance(value, int | float) and not isinstance(value, bool):
        shown = f"{value:g}" if isinstance(value, float) else str(value)
    return f"`{shown or (list(value) if isinstance(value, tuple) else value)}`"


def _doc(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
