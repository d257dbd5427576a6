"""Self-evolution training (SE): smoothed labels where the loss is high."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.parts.objective.base import Objective


class SelfEvolution(Objective):
    """SE (Peng et al., ACL 2023): smooths the labels of samples whose loss is still high.

    A loss above Gamma is computed with the label (1 - lambda) y + lambda p, with y the true label and p the model's own
    prediction, held constant. The gradient of that cross-entropy is 1 - lambda times the plain one, so the loss is
    multiplied by 1 - lambda. A loss of at most Gamma does not change. lambda = 0 is FedAvg.
    The paper decides for each target token. A co-author's code of FibecFed decides for a whole batch, by its mean loss,
    with Gamma = 2 and lambda = 0.5; these are our defaults. This form of mixing y and p is our reading
    of the paper. With answers in text, a sample's loss is the mean over its tokens (ours). The log has plain losses.
    AdamW and clipping undo most of a factor that all samples of a step share, so `loss_of: batch` changes little there.
    """

    kind: Literal["self_evolution"] = "self_evolution"
    side_by_side: ClassVar[bool] = True
    threshold: float = Field(2.0, ge=0, allow_inf_nan=False, description="Gamma: losses above it are smoothed")
    share: float = Field(0.5, ge=0, lt=1, description="lambda: share of the model's own prediction in the label")
    loss_of: Literal["batch", "sample"] = Field(
        "batch", description="whose loss is compared with Gamma: the batch's mean, or each sample's own"
    )

    def weigh(self, losses: Tensor) -> Tensor:
        compared = losses.mean().expand_as(losses) if self.loss_of == "batch" else losses
        return torch.where(compared > self.threshold, 1 - self.share, 1.0)
