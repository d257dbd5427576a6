"""Self-paced learning: what the received model finds easy comes first."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.parts.curriculum.scored import Scored


class LossOrder(Scored):
    """Self-paced learning (Kumar, Packer, Koller, NeurIPS 2010), on devices: low loss first, scored anew each time.

    They keep samples whose loss is below a threshold that grows; we keep the lowest share that the pacing allows, so
    that it compares with the other curricula. Costs one forward pass over the device's data per scoring.
    """

    kind: Literal["loss"] = "loss"
    score_at: Literal["init", "first_participation"] = "first_participation"
    rescore_every: int | None = Field(1, ge=1, description="rounds after which a participation scores anew")

    def difficulty(self, scan: FisherScan) -> Tensor:
        return scan.losses
