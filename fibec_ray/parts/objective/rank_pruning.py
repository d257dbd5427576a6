"""HetLoRA's regulariser, which lets a device drop ranks that it does not need."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.low_rank import A, B, pairs, rank_axis
from fibec_ray.parts.objective.base import Objective
from fibec_ray.tensors import Tensors, drop, under_prefix, with_prefix


class RankPruning(Objective):
    """HetLoRA (Cho et al., EMNLP 2024): adds strength * sum |B[:, g r_k:]|_F |A[g r_k:, :]|_F over adapted weights.

    If the sum falls in a round, r_k <- g r_k (rounded down, at least least_rank). That round's update already lacks the
    dropped ranks. g: gamma; gamma 1 has no tail and is the plain loss. Use it with peft lora and different `ranks`; r_k
    is kept on the device.
    """

    kind: Literal["rank_pruning"] = "rank_pruning"
    partners: ClassVar[Mapping[str, str]] = {"aggregator": "hetlora"}
    gamma: float = Field(0.99, gt=0, le=1, description="share of the ranks outside the tail; 0.99 in the paper")
    strength: float = Field(1e-3, ge=0, allow_inf_nan=False, description="weight of the tail's norm")
    least_rank: int = Field(1, ge=1, description="lowest rank of a device; 5 of 50 in the paper")
    keeps: ClassVar[str] = "its rank (device)"
    lowers_rank: ClassVar[bool] = True

    def penalty(self, params: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor | None:
        kept = self._kept(ranks_in_use(anchor))
        terms = [params[x + B][:, kept:].norm() * params[x + A][kept:].norm() for x in pairs(anchor)]
        return self.strength * torch.stack(terms).sum() if terms and self.strength else None

    def remember(self, memory: Tensors, shared: Tensors) -> Tensors:
        factors = {name: value for name, value in shared.items() if rank_axis(name) is not None}
        return memory | with_prefix("trained", factors)

    def finish(
        self, memory: Tensors, control: Tensors, delta: Tensors, num_steps: int, lr: float
    ) -> tuple[Tensors, Tensors]:
        after = under_prefix("trained", memory)
        kept_memory = drop(memory, with_prefix("trained", after))
        before = {name: value - delta[name] if name in delta else value for name, value in after.items()}
        rank = ranks_in_use(before)
        kept = self._kept(rank)
        if kept < rank and _tail(after, kept) < _tail(before, kept):
            rank = kept
        return kept_memory | {"rank": torch.tensor(rank)}, {}

    def _kept(self, rank: int) -> int:
        return max(min(self.least_rank, rank), math.floor(self.gamma * rank + 1e-9))


def ranks_in_use(factors: Mapping[str, Tensor]) -> int:
    """r_k: the largest number of nonzero rows of A over all weights. Rows start random, those beyond r_k at zero."""
    counts = [int(factors[x + A].detach().any(1).sum()) for x in pairs(factors)]
    return max(counts, default=0)


def _tail(factors: Tensors, kept: int) -> float:
    """sum |B[:, kept:]|_F |A[kept:, :]|_F."""
    return sum(float(factors[x + B][:, kept:].norm() * factors[x + A][kept:].norm()) for x in pairs(factors))
