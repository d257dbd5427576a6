"""Nothing is shared: devices train alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch

from fibec_ray.parts.part import Need
from fibec_ray.parts.sharing.base import Selection, Sharing
from fibec_ray.types import LayerReport, Layout


class Nothing(Sharing):
    """Local training: the anchor that says what communication is worth. A device trains in the rounds that draw it."""

    kind: Literal["none"] = "none"

    @property
    def lacks(self) -> tuple[Need, ...]:
        return ("shared",)

    @property
    def sends(self) -> str:
        return "nothing"

    @property
    def keeps(self) -> str:
        return "all that is trainable (device)"

    def select(self, reports: Sequence[LayerReport], layout: Layout, rng: torch.Generator) -> Selection:
        return Selection(frozenset())
