"""A part of your own: a term that is added to each device's training loss."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.parts.objective.base import Objective


class Sparse(Objective):
    """Adds strength * sum |w - w0| to the loss, where w0 is the model that the device received.

    The fields are the part's settings: the YAML sets them.
    """

    strength: float = Field(1e-4, ge=0, description="price of moving one entry by 1")

    def penalty(self, params: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor:
        moved = [(params[name] - anchor[name]).abs().sum() for name in anchor]
        return self.strength * torch.stack(moved).sum()
