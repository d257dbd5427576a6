"""What every part is: a frozen pydantic model whose fields are its hyper-parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict

from fibec_ray.errors import did_you_mean

Need = Literal["text", "classes", "transformer", "lora"]
"""What a part may do nothing without: samples that are tokens, labels that can be counted, a pretrained transformer's
blocks, LoRA's A and B."""


def of_label(label: str) -> tuple[Need, ...]:
    """What Fisher information over such labels needs."""
    return ("classes",) if label == "expected" else ()


class Part(BaseModel):
    """The base of all parts. `kind` is the tag that YAML names it by; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str

    @property
    def opens(self) -> bool:
        """True if the part has work to do in the initialisation phase."""
        return False

    @property
    def needs(self) -> tuple[Need, ...]:
        """What the rest of the experiment must have for the part to work; looked at before anything starts."""
        return ()

    @property
    def sends(self) -> str:
        """What devices send in a round because of this part, in words; '' for nothing more than the others."""
        return ""

    @property
    def keeps(self) -> str:
        """What outlasts a round because of this part, and where, in words."""
        return ""


P = TypeVar("P", bound=Part)


def build(registry: Mapping[str, type[P]], value: Any) -> P:
    """A part from YAML: a kind (`random`), or a mapping with `kind` and hyper-parameters. ValueError if unknown.

    A part that holds another of its axis finds the registry as the context of its validation.
    """
    if isinstance(value, Part):
        return value  # type: ignore[return-value]
    spec = {"kind": value} if isinstance(value, str) else value
    return registry[kind_of(spec, registry)].model_validate(dict(spec), context=registry)


def kind_of(spec: Any, registry: Mapping[str, Any]) -> str:
    """The kind that a mapping names. ValueError if it is no mapping, or names none of the registry."""
    if not isinstance(spec, Mapping):
        raise ValueError(f"expected a kind or a mapping with a kind, found {type(spec).__name__}")
    if "kind" not in spec and len(registry) == 1:
        return next(iter(registry))
    if "kind" not in spec:
        raise ValueError(f"kind is missing; set it to one of: {', '.join(sorted(registry))}")
    kind = str(spec["kind"])
    if kind not in registry:
        raise ValueError(f"no such kind {kind!r}; {did_you_mean(kind, registry)}")
    return kind
