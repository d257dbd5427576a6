"""FibecFed's global aggregation layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from fibec_ray.parts.sharing.base import Selection, Sharing, average_scores
from fibec_ray.parts.sharing.sensitivity import ScoreKind, layer_sensitivity
from fibec_ray.types import LayerReport, LocalModel, Shard


class GlobalLayers(Sharing):
    """FibecFed (Liu et al., EMNLP 2024): the N* blocks most sensitive to adversarial input noise are shared (the GAL).

    Device k scores each block on some of its samples (I_k^l, see `sensitivity.py`); the server averages with weights
    n_k / n and takes the top N* = round(fraction * L), ties to the lower block. Trainable tensors outside blocks (a
    head) are always shared. The paper's own N*, rho, p and sample count could not be sourced; these are our defaults.

    norm_diff needs pretrained weights: a fresh LayerNorm gives every token the same norm, whatever comes in, so that on
    an encoder with `init: random` it measures rounding only; take diff_norm there.
    """

    kind: Literal["gal"] = "gal"
    fraction: float = Field(0.5, ge=0, le=1, description="N* / L; 0 shares no block, 1 all")
    score_by: ScoreKind = "norm_diff"
    budget: float = Field(0.05, gt=0, description="rho: norm of the noise, in units of the embeddings")
    relative: bool = Field(False, description="rho is relative to each sample's ||E||_F; needed on a bfloat16 base")
    norm: float = Field(2.0, ge=1, description="p of the noise's norm, 1 to .inf")
    max_samples: int = Field(64, ge=1, description="samples that a device scores on, drawn once")

    @property
    def opens(self) -> bool:
        return True

    @property
    def keeps_personal(self) -> bool:
        return self.fraction < 1

    def score(self, model: LocalModel, shard: Shard, rng: torch.Generator) -> Tensor:
        rows = torch.randperm(shard.num_samples, generator=rng)[: self.max_samples]
        return layer_sensitivity(model, shard, rows, self.norm, self.budget, self.relative, self.score_by)

    def select(self, reports: Sequence[LayerReport], layers: Mapping[str, int | None], num_layers: int) -> Selection:
        scores = average_scores(reports)
        chosen = top_layers(scores, math.floor(self.fraction * num_layers + 0.5))
        return Selection(frozenset(name for name, layer in layers.items() if layer is None or layer in chosen), scores)


def top_layers(scores: Tensor, count: int) -> frozenset[int]:
    """The `count` blocks with the highest of scores (L,); ties go to the lower index."""
    return frozenset(torch.argsort(scores, descending=True, stable=True)[:count].tolist())
