"""FibecFed's global aggregation layers (GAL)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fibec_ray.answers import Answers
from fibec_ray.curvature.spectrum import Rule, SpectrumSettings, keep_ratio, refuse_unused
from fibec_ray.errors import RunError
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.parts.part import Need, Passes, Setting
from fibec_ray.parts.sharing.base import Selection, Sharing, refuse_without_blocks
from fibec_ray.parts.sharing.layer_scores import CHUNK, Noise, ScoreKind, layer_sensitivity, layer_similarity
from fibec_ray.types import LayerReport, LayerScores, Layout

FRACTION = 0.5
NOISE_FIELDS = ("budget", "relative", "norm", "noise_per", "score_at")
LIKELY_RATIO = 0.5
"""Share of the blocks that a run plan assumes where a spectrum decides."""


class GlobalLayers(Sharing):
    """FibecFed (Liu et al., EMNLP 2024): shares the N* blocks most sensitive to adversarial input noise (the GAL).

    Device k scores each block on some of its samples (I_k^l, see `layer_scores.py`). The server averages with weights
    n_k / n and takes the top N*, ties to the lower block. Trainable tensors outside blocks (a head) are always shared.
    N*, rho, p and the sample count are ours. The page on FibecFed has a co-author's choices.

    norm_diff needs pretrained weights. A fresh LayerNorm gives every token the same norm for any input, so on an
    encoder with `init: random` it measures only rounding; use diff_norm there.
    """

    kind: Literal["gal"] = "gal"
    count_by: Literal["fraction"] | Rule = Field(
        "fraction",
        description="N*: a fraction of L; or from the spectrum of each device's Hessian: lossless_gap (FedAP's rule, "
        "mean of ceil(r_k L) weighted by n_k) or slq_plateau (FedPepTAO's code, plain mean of r_k)",
    )
    fraction: float = Field(FRACTION, ge=0, le=1, description="N* / L; 0 shares no block, 1 shares all")
    spectrum: SpectrumSettings = Field(SpectrumSettings(), description="accuracy of the spectrum, for count_by")
    choose: Literal["top", "bottom", "random"] = Field(
        "top", description="by score; bottom and random are controls of the same size"
    )
    score_by: ScoreKind | Literal["similarity"] = Field(
        "norm_diff",
        description="relative change under noise, of the output's norm (norm_diff) or of the output (diff_norm); or "
        "similarity, FedPepTAO's score: how similar the block makes a device's samples",
    )
    budget: float = Field(0.05, gt=0, description="rho: norm of the noise, in units of the embeddings")
    relative: bool = Field(
        False, description="make rho relative to ||E||_F of each sample (or batch); needed on a bfloat16 base"
    )
    norm: float = Field(2.0, ge=1, allow_inf_nan=True, description="p of the noise's norm, 1 to .inf")
    noise_per: Literal["sample", "batch"] = Field(
        "sample",
        description="sample: noise of norm rho and a relative change for each sample; batch: one of each for all "
        "samples together, padding included",
    )
    score_at: Literal["tokens", "answer"] = Field(
        "tokens",
        description="states to compare. tokens: those of all real tokens; answer: that of the position that predicts "
        "the answer (with a classification head the first token)",
    )
    weights: Literal["samples", "uniform"] = Field(
        "samples", description="weight of a device's scores in the average: samples, n_k; uniform, equal for all"
    )
    max_samples: int = Field(64, ge=1, description="samples per device for the scores, drawn once")

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> GlobalLayers:
        if self.count_by != "fraction" and self.fraction != FRACTION:
            raise ValueError("fraction has an effect only with count_by: fraction; leave one of them out")
        fields = type(self).model_fields
        noise = [name for name in NOISE_FIELDS if getattr(self, name) != fields[name].default]
        if self.score_by == "similarity" and noise:
            raise ValueError(
                f"{', '.join(noise)}: no effect with score_by: similarity, which adds no noise; leave it out"
            )
        refuse_unused(self.spectrum, None if self.count_by == "fraction" else self.count_by, "count_by")
        return self

    needs_setup: ClassVar[bool] = True

    def unfit_for(self, setting: Setting) -> str | None:
        if setting.num_layers == 0:
            return "gal chooses among layers, but backbone.hidden has none; add some"
        if setting.dtype == "bfloat16" and not self.relative and self.score_by != "similarity":
            return (
                "gal's budget is an absolute noise norm, too small for the precision of a bfloat16 base; set "
                "method.sharing.relative=true, or backbone.dtype=float32"
            )
        return None

    @property
    def lacks(self) -> tuple[Need, ...]:
        return ("personal",) if self.count_by == "fraction" and self.fraction == 1 else ()

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("text", "position") if self.score_at == "answer" else ()

    sends: ClassVar[str] = "the GAL, the head"
    keeps: ClassVar[str] = "personal layers (device)"

    def score(self, model: LocalModel, shard: Shard, rng: torch.Generator) -> LayerScores:
        rows = torch.randperm(shard.num_samples, generator=rng)[: self.max_samples]
        if self.score_by == "similarity":
            scores = layer_similarity(model, shard, rows)
        else:
            noise = Noise(self.norm, self.budget, self.relative, self.noise_per == "batch", self.score_at == "answer")
            scores = layer_sensitivity(model, shard, rows, noise, self.score_by)
        if self.count_by == "fraction":
            return LayerScores(scores)
        adapter = [name for name in model.trainable if model.is_adapter(name)]
        return LayerScores(scores, keep_ratio(self.count_by, model, shard, adapter, self.spectrum, rng))

    def passes(self, answers: Answers) -> Sequence[Passes]:
        group = self.max_samples if self.noise_per == "batch" else CHUNK
        noisy = Passes(self.max_samples, group)
        return [noisy] if self.score_by == "similarity" else [noisy, Passes(self.max_samples, group, backwards=1)]

    def example_scores(self, num_layers: int) -> LayerScores:
        return LayerScores(torch.arange(num_layers).float(), None if self.count_by == "fraction" else LIKELY_RATIO)

    def as_planned(self) -> GlobalLayers:
        return self.model_copy(update={"count_by": "fraction"})

    def select(self, reports: Sequence[LayerReport], layout: Layout, rng: torch.Generator) -> Selection:
        refuse_without_blocks(self.kind, layout)
        scores = average_scores(reports, self.weights)
        chosen = choose_layers(scores, self._count(reports, layout.num_layers), self.choose, rng)
        names = (name for name, layer in layout.layers.items() if layer is None or layer in chosen)
        return Selection(frozenset(names), scores)

    def _count(self, reports: Sequence[LayerReport], num_layers: int) -> int:
        """N*, the number of blocks to share."""
        if self.count_by == "fraction":
            return _rounded(self.fraction * num_layers)
        known = [(report.num_samples, report.scores.keep_ratio) for report in reports]
        ratios = [(weight, ratio) for weight, ratio in known if ratio is not None]
        if not ratios:
            raise RunError(
                f"method.sharing: no device reported how many layers to share ({self.count_by}); use count_by: fraction"
            )
        if self.count_by == "slq_plateau":
            mean = math.fsum(ratio * num_layers for _, ratio in ratios) / len(ratios)
        else:
            total = sum(weight for weight, _ in ratios)
            mean = math.fsum(weight * math.ceil(ratio * num_layers - 1e-9) for weight, ratio in ratios) / total
        return min(num_layers, max(1, _rounded(mean)))


def average_scores(reports: Sequence[LayerReport], weights: Literal["samples", "uniform"] = "samples") -> Tensor:
    """I^l = sum_k (n_k / n) I_k^l over the devices with scores, n their samples; (L,) float32. uniform: equal weights.

    Summed in float64 in the given order. Raises RunError if no device has scores.
    """
    by_samples = weights == "samples"
    known = [(report.num_samples if by_samples else 1, report.scores.sensitivity) for report in reports]
    scored = [(weight, scores) for weight, scores in known if scores is not None and bool(scores.isfinite().all())]
    if not scored:
        raise RunError("method.sharing: no device has finite scores of its layers; choose another score_by")
    total = sum(weight for weight, _ in scored)
    return torch.stack([scores.double() * (weight / total) for weight, scores in scored]).sum(0).float()


def choose_layers(scores: Tensor, count: int, how: str, rng: torch.Generator) -> frozenset[int]:
    """Choose `count` blocks: those with the highest or lowest of scores (L,), ties to the lower index, or random
    ones.
    """
    if how == "random":
        order = torch.randperm(len(scores), generator=rng)
    else:
        order = torch.argsort(scores, descending=how == "top", stable=True)
    return frozenset(order[:count].tolist())


def _rounded(value: float) -> int:
    """Round to the nearest integer, halves up."""
    return math.floor(value + 0.5)
