"""The control of every curriculum claim: the same pacing over an order that means nothing."""

from __future__ import annotations

from typing import Literal

import torch

from fibec_ray.fisher import FisherScan
from fibec_ray.parts.curriculum.paced import Paced
from fibec_ray.tensors import Tensors


class RandomOrder(Paced):
    """Random curriculum (Wu et al., ICLR 2021): separates "less data early" from "easy data early"."""

    kind: Literal["random"] = "random"

    def prepare(self, scan: FisherScan, rng: torch.Generator) -> Tensors:
        return {"order": torch.randperm(self.num_units(scan), generator=rng)}
