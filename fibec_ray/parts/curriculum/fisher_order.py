"""FibecFed's curriculum: batches from low to high Fisher information."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.fisher import FisherScan, Label, Scope
from fibec_ray.parts.curriculum.scored import Scored
from fibec_ray.tensors import Tensors


class FisherOrder(Scored):
    """FibecFed (Liu et al., EMNLP 2024): difficulty of batch B_j is f_j = sum_{i in B_j} Tr(diag F_i), easiest first.

    Tr(diag F_i) = ||grad_P log p(y_i | s_i)||^2 over the LoRA parameters P with the observed label (empirical Fisher),
    at the initial model (or see `score_at`). We take the mean over the batch where the paper takes the sum: batches of
    one size rank alike under both, and a short last batch does not rank easy by its size.
    """

    kind: Literal["fisher"] = "fisher"
    reduce: Literal["mean", "sum"] = Field(
        "mean", description="of the traces of a batch's samples; sum is the paper's and ranks short batches as easy"
    )
    label: Label = Field("observed", description="whose gradient: of the data's label, all of the model's, or a drawn")
    scope: Scope = Field("adapter", description="tensors in the trace; all: the head too")
    length_power: float = Field(
        0.0,
        ge=-4,
        le=4,
        description="the trace is multiplied by length^this; 1 undoes what mean pooling does to long texts, 0 as is",
    )
    hardest_first: bool = Field(False, description="true is the anti-curriculum, a control (Wu et al., ICLR 2021)")

    def prepare(self, scan: FisherScan, rng: torch.Generator, round_: int) -> Tensors:
        difficulty = scan.read(self.label, self.scope).traces * scan.shard.lengths.float() ** self.length_power
        of_batches = batch_difficulties(difficulty, scan.batches, self.reduce)
        units = of_batches if self.unit == "batch" else difficulty
        return {
            "order": torch.argsort(units, stable=True, descending=self.hardest_first),
            "scored_round": torch.tensor(max(round_, 0)),
            "sample_difficulty": difficulty,
            "batch_difficulty": of_batches,
        }


def batch_difficulties(difficulty: Tensor, batches: Sequence[Tensor], reduce: str) -> Tensor:
    """f_j of each batch, (num_batches,), from the difficulty (n,) of the shard's samples."""
    return torch.stack([difficulty[rows].sum() if reduce == "sum" else difficulty[rows].mean() for rows in batches])
