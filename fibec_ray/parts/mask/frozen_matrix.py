"""A mask that freezes one matrix of each LoRA pair."""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar, Literal

import torch
from pydantic import Field

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.parts.mask.base import Mask
from fibec_ray.parts.part import Need
from fibec_ray.tensors import Tensors, with_prefix


class FrozenMatrix(Mask):
    """FFA-LoRA (Sun et al., ICLR 2024): A keeps its random start, the same on all devices; only B is trained and sent.

    The mean of the updates is then the update of the mean: mean_k s B_k A = s (mean_k B_k) A, which does not hold when
    both matrices are averaged. Combine it with a sharing rule that leaves out the frozen matrix.
    """

    kind: Literal["frozen_matrix"] = "frozen_matrix"
    freeze: Literal["A", "B"] = Field("A", description="the matrix to freeze")
    needs: ClassVar[tuple[Need, ...]] = ("lora", "personal")

    def refresh(self, memory: Tensors, scan: FisherScan, names: Collection[str], rng: torch.Generator) -> Tensors:
        shapes = {name: scan.model.trainable[name].shape for name in names}
        moves = {name: torch.full(shape, f".lora_{self.freeze}." not in name) for name, shape in shapes.items()}
        return with_prefix("kept", moves)
