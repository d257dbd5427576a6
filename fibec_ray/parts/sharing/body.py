"""Personal heads: everything is shared but the head, or the last blocks too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field

from fibec_ray.parts.part import Need
from fibec_ray.parts.sharing.base import Selection, Sharing, refuse_without_blocks
from fibec_ray.types import LayerReport, Layout


class Body(Sharing):
    """FedPer (Arivazhagan et al. 2019): the body is averaged, the head stays on the device and trains with it.

    With a verbaliser there is no head; then `last_blocks` says how many of the topmost blocks stay instead, and 0 is
    FedAvg.
    """

    kind: Literal["body"] = "body"
    last_blocks: int = Field(0, ge=0, description="blocks from the top whose adapters are personal too")
    lacks: ClassVar[tuple[Need, ...]] = ()
    sends: ClassVar[str] = "all but the head"
    keeps: ClassVar[str] = "the head (device)"

    def select(self, reports: Sequence[LayerReport], layout: Layout, rng: torch.Generator) -> Selection:
        refuse_without_blocks(self.kind, layout)
        end = layout.num_layers - self.last_blocks
        return Selection(frozenset(n for n, layer in layout.layers.items() if layer is not None and layer < end))
