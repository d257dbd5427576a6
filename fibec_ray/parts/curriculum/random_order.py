"""The control of every curriculum claim: the same pacing over an order that means nothing."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.parts.curriculum.paced import Paced
from fibec_ray.tensors import Tensors


class RandomOrder(Paced):
    """Random curriculum (Wu et al., ICLR 2021): separates "less data early" from "easy data early".

    The order is drawn once per device and kept, so that a device sees the same units again and again, as under any
    other order.
    """

    kind: Literal["random"] = "random"
    keeps: ClassVar[str] = "order of its data (device)"

    def due(self, memory: Tensors, round_: int) -> bool:
        return "order" not in memory

    def prepare(self, scan: FisherScan, rng: torch.Generator, round_: int) -> Tensors:
        units = self.as_split(scan.batches)
        return {"order": units[torch.randperm(len(units), generator=rng)]}
