"""The kinds of backbone. A new kind is a subclass of `AnyBackbone` in a file of its own, and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from fibec_ray.errors import did_you_mean
from fibec_ray.models.base import AnyBackbone
from fibec_ray.models.image_backbone import ImageBackbone
from fibec_ray.models.nets import Cnn, Mlp
from fibec_ray.models.spec import Backbone

BACKBONES: dict[str, type[AnyBackbone]] = {"": Backbone, "image": ImageBackbone, "mlp": Mlp, "cnn": Cnn}
"""By `kind`; '' is the kind of a mapping without one."""
NAMED = {kind: cls for kind, cls in BACKBONES.items() if kind}
"""The kinds that have to be named."""


def class_of(value: Any) -> type[AnyBackbone] | None:
    """The class of a backbone, or of a mapping of its settings; None for anything else."""
    if isinstance(value, AnyBackbone):
        return type(value)
    return BACKBONES.get(str(value.get("kind", ""))) if isinstance(value, Mapping) else None


def parse(value: Any) -> AnyBackbone:
    """A backbone from a mapping of its settings. Raises ValueError."""
    if isinstance(value, AnyBackbone):
        return value
    kind = str(value.get("kind", "")) if isinstance(value, Mapping) else ""
    if kind not in BACKBONES:
        raise ValueError(f"no such kind {kind!r}; {did_you_mean(kind, NAMED)}")
    return BACKBONES[kind].model_validate(value)


OneBackbone = Annotated[SerializeAsAny[AnyBackbone], BeforeValidator(parse)]
"""The type of a setting that holds a backbone of any kind."""
