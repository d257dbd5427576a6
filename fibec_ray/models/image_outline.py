"""An image backbone with its adapter but without values, to plan a run."""

from __future__ import annotations

from typing import Any

from fibec_ray.blocks import find_blocks, has_stages
from fibec_ray.models.image_model import ImageModel
from fibec_ray.models.outline import Outline
from fibec_ray.parts.peft.base import is_product


class ImageOutline(Outline, ImageModel):
    """An ImageModel of fake tensors."""

    @property
    def blocks_are_alike(self) -> bool:
        """False for blocks in stages, which differ in size."""
        return not has_stages(self.config)

    @property
    def vocab_size(self) -> int:
        """0: it reads no text."""
        return 0

    def largest_product(self, max_length: int) -> tuple[int, int, int]:
        """The largest Linear of the blocks at all places of an image."""
        linears: list[Any] = [
            child for block in find_blocks(self.base) for child in block.modules() if is_product(child)
        ]
        largest = max(linears, key=lambda each: each.in_features * each.out_features)
        return self.measured.num_places, largest.in_features, largest.out_features
