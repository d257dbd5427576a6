"""Control curricula: the same pacing as others, over a random order or over units drawn anew each round."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.parts.curriculum.pacing import Paced
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


class StepMatched(Paced):
    """Round t shows b_k^t units as the pacing says, drawn anew from all of the device's units in every round.

    Separates "fewer steps early" from "the same part of the data early" (ours, for want of a published control).
    """

    kind: Literal["step_matched"] = "step_matched"

    def _chosen(self, num_units: int, round_: int, rounds: int, rng: torch.Generator) -> Tensor:
        count = len(super()._chosen(num_units, round_, rounds, rng))
        return torch.randperm(num_units, generator=rng)[:count]
