"""FibecFed's curriculum: batches from low to high Fisher information."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from fibec_ray.curvature.fisher import FisherScan, Label, Scope
from fibec_ray.parts.curriculum.scored import Scored
from fibec_ray.parts.part import Need, of_label


class FisherOrder(Scored):
    """FibecFed (Liu et al., EMNLP 2024): difficulty of batch B_j is f_j = sum_{i in B_j} Tr(diag F_i), easiest first.

    Tr(diag F_i) = ||grad_P log p(y_i | s_i)||^2 over the LoRA parameters P with the observed label (empirical Fisher),
    at the initial model (or see `score_at`). We take the mean over the batch where the paper takes the sum: batches of
    one size rank alike under both, and a short last batch does not rank easy by its size.
    """

    kind: Literal["fisher"] = "fisher"
    label: Label = Field("observed", description="whose gradient: of the data's label, all of the model's, or a drawn")
    scope: Scope = Field("adapter", description="tensors in the trace; all: the head too")
    length_power: float = Field(
        0.0,
        ge=-4,
        le=4,
        description="the trace is multiplied by length^this; 1 undoes what mean pooling does to long texts, 0 as is",
    )

    @property
    def needs(self) -> tuple[Need, ...]:
        return (*of_label(self.label), *(("text",) if self.length_power else ()))

    def difficulty(self, scan: FisherScan) -> Tensor:
        return scan.read(self.label, self.scope).traces * scan.shard.lengths.float() ** self.length_power
