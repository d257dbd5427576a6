"""Nothing is shared: devices train alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from fibec_ray.parts.part import Need
from fibec_ray.parts.sharing.base import Selection, Sharing
from fibec_ray.types import LayerReport, Layout


class Nothing(Sharing):
    """Local training: the anchor that says what communication is worth. A device trains in the rounds that draw it."""

    kind: Literal["none"] = "none"
    lacks: ClassVar[tuple[Need, ...]] = ("shared",)
    sends: ClassVar[str] = "nothing"
    keeps: ClassVar[str] = "all that is trainable (device)"

    def select(self, reports: Sequence[LayerReport], layout: Layout, rng: torch.Generator) -> Selection:
        return Selection(frozenset())
