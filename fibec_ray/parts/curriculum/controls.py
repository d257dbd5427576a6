"""Control curricula: the usual pacing over a random order, or over units drawn again in each round."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.parts.curriculum.pacing import Paced
from fibec_ray.tensors import Tensors


class RandomOrder(Paced):
    """Random curriculum (Wu et al., ICLR 2021): separates "less data early" from "easy data early".

    Each device draws its order once and keeps it. It therefore sees the same units early in every round, as with any
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
    """Shows as many units in round t as the pacing allows, drawn in each round from all units of the device.

    Separates "fewer steps early" from "the same part of the data early". This control is ours; we know of no published
    one.
    """

    kind: Literal["step_matched"] = "step_matched"

    def _chosen(self, num_units: int, round_: int, rounds: int, rng: torch.Generator) -> Tensor:
        count = len(super()._chosen(num_units, round_, rounds, rng))
        return torch.randperm(num_units, generator=rng)[:count]
