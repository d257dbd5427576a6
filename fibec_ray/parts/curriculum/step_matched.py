"""The control that takes a curriculum's number of steps and nothing else: as many batches, drawn from all data."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from fibec_ray.parts.curriculum.paced import Paced


class StepMatched(Paced):
    """Round t shows b_k^t units as the pacing says, drawn anew from all of the device's units in every round.

    Separates "fewer steps early" from "the same part of the data early" (ours, for want of a published control).
    """

    kind: Literal["step_matched"] = "step_matched"

    def _chosen(self, num_units: int, round_: int, rounds: int, rng: torch.Generator) -> Tensor:
        count = len(super()._chosen(num_units, round_, rounds, rng))
        return torch.randperm(num_units, generator=rng)[:count]
