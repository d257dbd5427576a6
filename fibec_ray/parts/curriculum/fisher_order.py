"""FibecFed's curriculum: batches from low to high Fisher information."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.fisher import FisherScan
from fibec_ray.parts.curriculum.paced import Paced
from fibec_ray.tensors import Tensors


class FisherOrder(Paced):
    """FibecFed (Liu et al., EMNLP 2024): difficulty of batch B_j is f_j = sum_{i in B_j} Tr(diag F_i), easiest first.

    Tr(diag F_i) = ||grad_P log p(y_i | s_i)||^2 over the LoRA parameters P with the observed label (empirical Fisher),
    at the initial model (or see `score_at`). With `reduce: sum` (as described) a short last batch looks easy; `mean`
    divides by its size.
    """

    kind: Literal["fisher"] = "fisher"
    reduce: Literal["sum", "mean"] = Field("sum", description="of the traces of a batch's samples")

    def prepare(self, scan: FisherScan, rng: torch.Generator) -> Tensors:
        traces = scan.traces
        units = batch_difficulties(traces, scan.batches, self.reduce) if self.unit == "batch" else traces
        return {"order": torch.argsort(units, stable=True), "sample_difficulty": traces}


def batch_difficulties(traces: Tensor, batches: Sequence[Tensor], reduce: str) -> Tensor:
    """f_j of each batch, (num_batches,), from the traces (n,) of the shard's samples."""
    return torch.stack([traces[rows].sum() if reduce == "sum" else traces[rows].mean() for rows in batches])
