"""MOON's contrastive term."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.part import Need
from fibec_ray.tensors import Tensors


class Moon(Objective):
    """MOON (Li et al., CVPR 2021): pulls features z towards the received model's, and away from the device's last
    model's.

    Adds mu * -log(e^{cos(z, z_g) / tau} / (e^{cos(z, z_g) / tau} + e^{cos(z, z_p) / tau})), averaged over the batch.
    z_g is from the received model, z_p from the device's model at the end of its last participation. mu = 0 is FedAvg.
    Ours: z is the mean of the last block's outputs over a sample's real tokens (after a final norm, if there is one);
    the paper adds a projection head. z_g and z_p are computed once a round for the visible samples, without dropout, in
    two forward passes. At a device's first participation z_p = z_g makes the term a constant log 2, so both are
    skipped. Masks that take Fisher information from training are rejected, since the term changes those gradients.
    """

    kind: Literal["moon"] = "moon"
    mu: float = Field(1.0, ge=0, allow_inf_nan=False, description="weight of the term; Flower's MOON uses 1 or 5")
    tau: float = Field(0.5, gt=0, allow_inf_nan=False, description="temperature; Flower's MOON uses 0.5")
    keeps: ClassVar[str] = "last own model (device)"
    needs: ClassVar[tuple[Need, ...]] = ("shared",)

    def teachers(self, received: Tensors, memory: Tensors) -> Sequence[Tensors]:
        return (received, received | memory) if memory else ()

    def feature_penalty(self, features: Tensor, references: Sequence[Tensor]) -> Tensor:
        near, far = (F.cosine_similarity(features, reference, dim=1) for reference in references)
        return self.mu * F.softplus((far - near) / self.tau).mean()

    def remember(self, memory: Tensors, shared: Tensors) -> Tensors:
        # The device starts from its last personal tensors anyway.
        return shared
