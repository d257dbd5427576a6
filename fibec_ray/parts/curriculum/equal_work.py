"""As many batches on each device, however much data it has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.parts.curriculum.base import Curriculum
from fibec_ray.tensors import Tensors


class EqualWork(Curriculum):
    """Shows a few batches of each device, drawn in each round from all of its data.

    A round takes as long as its slowest device, which is often one with much data. With a limit, only the devices'
    speeds differ, and a round costs a part of the passes. Devices with less data train on all of it. Each local epoch
    of a round has the same batches. Ours: the fixed number of local steps that is usual in federated learning, as a
    part of a method; `local.max_steps` limits the steps of any method.
    """

    kind: Literal["equal_work"] = "equal_work"
    batches: int = Field(3, ge=1, description="most batches that a device trains on in a round")

    def visible(
        self, memory: Tensors, batches: Sequence[Tensor], round_: int, rounds: int, rng: torch.Generator
    ) -> list[Tensor]:
        drawn = torch.randperm(len(batches), generator=rng)[: self.batches]
        return [batches[i] for i in sorted(drawn.tolist())]
