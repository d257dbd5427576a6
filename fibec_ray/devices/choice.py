"""Builds one of several kinds of a section from YAML: a kind, or a mapping that may name one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel

from fibec_ray.errors import did_you_mean

M = TypeVar("M", bound=BaseModel)


def chosen(registry: Mapping[str, type[M]], value: Any) -> Any:
    """Build `markov`, or `{kind: markov, daily: 0.5}`. Without `kind` it is the registry's first.

    Raises ValueError for an unknown kind, ValidationError for wrong settings.
    """
    if isinstance(value, BaseModel):
        return value
    spec = {"kind": value} if isinstance(value, str) else value
    if not isinstance(spec, Mapping):
        raise ValueError(f"expected a kind or a mapping with a kind, found {type(spec).__name__}")
    kind = str(spec.get("kind", next(iter(registry))))
    if kind not in registry:
        raise ValueError(f"no such kind {kind!r}; {did_you_mean(kind, registry)}")
    return registry[kind].model_validate({**spec, "kind": kind})
