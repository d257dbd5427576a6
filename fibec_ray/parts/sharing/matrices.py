"""One matrix of each LoRA pair is shared, the other is personal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field

from fibec_ray.errors import ConfigError
from fibec_ray.parts.part import Need
from fibec_ray.parts.sharing.base import Selection, Sharing
from fibec_ray.types import LayerReport, Layout


class Matrices(Sharing):
    """FedSA-LoRA (Guo et al., ICLR 2025): both matrices are trained, A is averaged, B and the head stay on the device.

    Their finding: A learns what devices have in common, B what they do not. `share: B` is the control. A device that
    was never drawn holds B = 0, the base model. Raises ConfigError if the PEFT kind has no such matrices.
    """

    kind: Literal["matrices"] = "matrices"
    share: Literal["A", "B"] = "A"
    head: Literal["personal", "shared"] = Field("personal", description="theirs is personal; no effect without a head")
    needs: ClassVar[tuple[Need, ...]] = ("lora",)
    lacks: ClassVar[tuple[Need, ...]] = ()

    @property
    def sends(self) -> str:
        return f"LoRA's {self.share}" + (", the head" if self.head == "shared" else "")

    keeps: ClassVar[str] = "the other matrix (device)"

    def select(self, reports: Sequence[LayerReport], layout: Layout, rng: torch.Generator) -> Selection:
        shared = frozenset(name for name in layout.layers if f".lora_{self.share}." in name)
        if not shared:
            raise ConfigError(
                f"method.sharing: matrices shares LoRA's {self.share}, and method.peft has none; use lora"
            )
        heads = frozenset(name for name, layer in layout.layers.items() if layer is None)
        return Selection(shared | heads if self.head == "shared" else shared - heads)
