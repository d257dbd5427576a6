"""Settings that have an effect only beside another one, declared on the field itself and refused in one place.

    lanes: Annotated[int, OnlyWith("kind", "ray")] = 1

Sections call `refuse_idle` once they are validated. An override that changes `kind` drops what no longer applies.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


class OnlyWith:
    """Marks a field that has an effect only where another field of the section has one of some values."""

    def __init__(self, field: str, *values: str):
        self.field, self.values = field, values


def rules(section: type[BaseModel]) -> dict[str, OnlyWith]:
    """The marked fields of a section, by name."""
    return {
        name: mark
        for name, field in section.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, OnlyWith)
    }


def selectors(section: type[BaseModel]) -> set[str]:
    """The fields that decide about others."""
    return {rule.field for rule in rules(section).values()}


def idle(section: type[BaseModel], field: str, value: Any) -> set[str]:
    """The fields that have no effect where `field` is set to `value`."""
    return {name for name, rule in rules(section).items() if rule.field == field and value not in rule.values}


def without_idle(section: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a section without those that have no effect, which earlier releases accepted."""
    chosen = {field: values.get(field, section.model_fields[field].get_default()) for field in selectors(section)}
    dropped = {name for field, value in chosen.items() for name in idle(section, field, value)}
    return {name: value for name, value in values.items() if name not in dropped}


def refuse_idle(section: BaseModel) -> None:
    """Raises ValueError for a field that is not at its default and has no effect."""
    for name, rule in rules(type(section)).items():
        found, default = getattr(section, rule.field), type(section).model_fields[name].get_default()
        if found not in rule.values and getattr(section, name) != default:
            raise ValueError(
                f"{name} has no effect with {rule.field}: {found}; leave it out, or set {rule.field}: "
                f"{' or '.join(rule.values)}"
            )
