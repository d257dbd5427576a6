"""Sharing rules without scores: the tensors' names decide."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field

from fibec_ray.errors import ConfigError
from fibec_ray.parts.part import Need
from fibec_ray.parts.sharing.base import Selection, Sharing, refuse_without_blocks
from fibec_ray.types import LayerReport, Layout


class Body(Sharing):
    """FedPer (Arivazhagan et al. 2019): the body is averaged; the head stays on the device and trains there.

    With a verbaliser there is no head. `last_blocks` is then the number of topmost blocks that stay on the device; 0 is
    FedAvg.
    """

    kind: Literal["body"] = "body"
    last_blocks: int = Field(0, ge=0, description="number of top blocks whose adapters are personal too")
    lacks: ClassVar[tuple[Need, ...]] = ()

    @property
    def sends(self) -> str:
        return f"all but {self._personal}"

    @property
    def keeps(self) -> str:
        return f"{self._personal} (device)"

    @property
    def _personal(self) -> str:
        blocks = "block" if self.last_blocks == 1 else f"{self.last_blocks} blocks"
        return f"the head and the top {blocks}" if self.last_blocks else "the head"

    def select(self, reports: Sequence[LayerReport], layout: Layout, rng: torch.Generator) -> Selection:
        refuse_without_blocks(self.kind, layout)
        end = layout.num_layers - self.last_blocks
        return Selection(frozenset(n for n, layer in layout.layers.items() if layer is not None and layer < end))


class Matrices(Sharing):
    """FedSA-LoRA (Guo et al., ICLR 2025): both matrices are trained, A is averaged, B and the head stay on the device.

    The paper finds that A learns what devices have in common, and B what differs. `share: B` is the control. A device
    that was never drawn has B = 0, the base model. Raises ConfigError if the PEFT kind has no such matrices.
    """

    kind: Literal["matrices"] = "matrices"
    share: Literal["A", "B"] = Field("A", description="the matrix to share")
    head: Literal["personal", "shared"] = Field(
        "personal", description="personal in the paper; no effect without a head"
    )
    needs: ClassVar[tuple[Need, ...]] = ("lora",)
    lacks: ClassVar[tuple[Need, ...]] = ("pairs",)

    @property
    def sends(self) -> str:
        return f"LoRA's {self.share}" + (", the head" if self.head == "shared" else "")

    keeps: ClassVar[str] = "the other matrix (device)"

    def select(self, reports: Sequence[LayerReport], layout: Layout, rng: torch.Generator) -> Selection:
        shared = frozenset(name for name in layout.layers if f".lora_{self.share}." in name)
        if not shared:
            raise ConfigError(
                f"method.sharing: matrices shares LoRA's {self.share}, but method.peft has none; use lora"
            )
        heads = frozenset(name for name, layer in layout.layers.items() if layer is None)
        return Selection(shared | heads if self.head == "shared" else shared - heads)


class Nothing(Sharing):
    """Local training without communication: the baseline for the value of federation. A device trains when it is
    drawn.
    """

    kind: Literal["none"] = "none"
    lacks: ClassVar[tuple[Need, ...]] = ("shared",)
    sends: ClassVar[str] = "nothing"
    keeps: ClassVar[str] = "all that is trainable (device)"

    def select(self, reports: Sequence[LayerReport], layout: Layout, rng: torch.Generator) -> Selection:
        return Selection(frozenset())
