"""FedProx's proximal term."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.parts.objective.base import Objective


class Proximal(Objective):
    """FedProx (Li et al., MLSys 2020): pulls local parameters w towards the received w0 by (mu / 2) |w - w0|^2.

    mu = 0 is FedAvg. Covers all trainable tensors, including personal ones (their w0 is the device's own last value).
    """

    kind: Literal["proximal"] = "proximal"
    side_by_side: ClassVar[bool] = True
    mu: float = Field(0.01, ge=0, description="strength of the pull; the paper tries 0.001 to 1")

    def penalty(self, params: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor | None:
        return 0.5 * self.mu * squared_distance(params, anchor) if anchor else None


def squared_distance(params: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor:
    """|w - w0|^2 over the tensors of the anchor."""
    return torch.stack([(params[name] - anchor[name]).square().sum() for name in anchor]).sum()
