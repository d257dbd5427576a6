"""Scores of blocks: FibecFed's sensitivity to adversarial noise, and FedPepTAO's similarity of a device's samples.

FibecFed: for each sample i with token embeddings E_i (T x H), g_i = dl/dE_i gives the worst small noise eps_i* in
closed form. The score is the relative change of each block's output under it.

Shapes: n samples of a device, B of a chunk, S padded tokens, H hidden size, L blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from fibec_ray.curvature.fisher import by_length
from fibec_ray.model_types import Batch, LocalModel, Shard

ScoreKind = Literal["norm_diff", "diff_norm"]

CHUNK = 16
"""Samples scored at once."""


def worst_noise(grads: Tensor, budget: Tensor, p: float) -> Tensor:
    """eps* = argmax_{||eps||_p <= rho} <eps, g> for each sample, by the dual norm 1/p + 1/q = 1 (Foret et al. 2021).

    grads: (B, D), zeros at padding. budget: (B,) rho of each sample, > 0. p in [1, inf]. A zero gradient gives zero
    noise. eps* = rho sign(g) |g|^{q-1} / (||g||_q^q)^{1/p}; ||eps*||_p = rho and <eps*, g> = rho ||g||_q.
    """
    largest = grads.abs().amax(dim=1, keepdim=True)
    scaled = torch.where(
        largest > 0, grads / largest, torch.zeros_like(grads)
    )  # eps* does not depend on the scale of g
    if p == 1:
        direction = torch.zeros_like(grads)
        at = scaled.abs().argmax(dim=1, keepdim=True)
        direction.scatter_(1, at, scaled.gather(1, at).sign())
    elif math.isinf(p):
        direction = scaled.sign()
    else:
        q = p / (p - 1)
        direction = scaled.sign() * scaled.abs().pow(q - 1)
        norm = scaled.abs().pow(q).sum(dim=1, keepdim=True).pow(1 / p)
        direction = torch.where(norm > 0, direction / norm, torch.zeros_like(direction))
    return direction * budget.unsqueeze(1)


def relative_change(clean: Tensor, noisy: Tensor, kind: ScoreKind) -> Tensor:
    """(B,) relative difference of one block's outputs (B, S, H), zeros at padding, in the Frobenius norm.

    norm_diff: | ||h'|| - ||h|| | / ||h||, the literal reading of the paper; diff_norm: ||h' - h|| / ||h||. A block
    whose output is all zeros scores 0.
    """
    before = clean.flatten(1).norm(dim=1)
    if kind == "norm_diff":
        change = (noisy.flatten(1).norm(dim=1) - before).abs()
    else:
        change = (noisy - clean).flatten(1).norm(dim=1)
    return torch.where(before > 0, change / before, 0.0)


@dataclass(frozen=True)
class Noise:
    """How much noise `layer_sensitivity` adds, and which states it compares."""

    p: float = 2.0
    """order of the noise's norm, in [1, inf]"""
    rho: float = 0.05
    """the noise's norm, > 0"""
    relative: bool = False
    """rho is a share of the norm of the embeddings that get the noise"""
    whole_batch: bool = False
    """one noise and one relative change for all samples together, padding included; False: one for each sample"""
    at_answer: bool = False
    """compare the states at the answer's position; False: at all real tokens"""

    def worst(self, values: Tensor, grads: Tensor) -> Tensor:
        """The noise for embeddings (B, S, H) with these gradients."""
        rows = 1 if self.whole_batch else len(values)
        flat = grads.reshape(rows, -1)
        size = values.reshape(rows, -1).norm(dim=1) if self.relative else flat.new_ones(rows)
        return worst_noise(flat, self.rho * size, self.p).view_as(values)

    def compared(self, states: Tensor, batch: Batch) -> Tensor:
        """The states (B, S, H) to compare, in the shape that `relative_change` takes; one row for a whole batch."""
        chosen = states.float()
        chosen = at_answer(chosen, batch) if self.at_answer else chosen * batch.real(states)
        return chosen.flatten(0, 1).unsqueeze(0) if self.whole_batch else chosen


def at_answer(states: Tensor, batch: Batch) -> Tensor:
    """(B, k, H) states at the answer's position of each of a sample's k rows, from states (B, k S, H)."""
    rows = batch.rows_each
    at = batch.inputs["answer_at"].to(states.device).view(len(states), rows)
    at = at + torch.arange(rows, device=at.device) * (states.shape[1] // rows)
    return states.gather(1, at.unsqueeze(2).expand(-1, -1, states.shape[2]))


def layer_sensitivity(model: LocalModel, shard: Shard, rows: Tensor, noise: Noise, kind: ScoreKind) -> Tensor:
    """I_k^l, (L,) float32: mean over the samples at `rows` of each block's relative change, or the relative change of
    all samples together. In evaluation mode.
    """
    model.train(False)
    scores = []
    for batch in map(shard.batch, by_length(shard, rows, len(rows) if noise.whole_batch else CHUNK)):
        with torch.enable_grad():
            embeds = model.embed(batch).detach().requires_grad_()
            clean, _ = model.per_sample_grads(batch, embeds=embeds, hidden=True)
            (grads,) = model.grad(clean.losses.sum(), [embeds])
        assert grads is not None
        real = 1 if noise.whole_batch else batch.real(embeds)
        values = embeds.detach().float() * real
        added = noise.worst(values, grads.float() * real)
        with torch.no_grad():
            noisy = model.forward(batch, embeds=(values + added).to(embeds.dtype), hidden=True)
            changes = [
                relative_change(noise.compared(before.detach(), batch), noise.compared(after, batch), kind)
                for before, after in zip(clean.hidden, noisy.hidden, strict=True)
            ]
        scores.append(torch.stack(changes).cpu())  # (L, B), or (L, 1) for a whole batch
    return torch.cat(scores, dim=1).mean(dim=1)


RIDGE = 1e-5
"""Added to eigenvalues before the logarithm."""


def spread(similarity: Tensor) -> Tensor:
    """sum_i log e_i + 1 / e_i, as in the code of FedPepTAO (Che et al., EMNLP 2023).

    e = eigenvalues + 1e-5 of a matrix of cosine similarities (n, n). The minimum n is reached when all samples are
    orthogonal (e_i = 1). The more similar the samples, the more eigenvalues are near 0, and the larger the value.
    """
    values = torch.linalg.eigvalsh(similarity.double()).clamp(min=0) + RIDGE
    return (values.log() + 1 / values).sum()


@torch.no_grad()
def layer_similarity(model: LocalModel, shard: Shard, rows: Tensor) -> Tensor:
    """(L,) float32 `spread` of the cosines between samples' states, flattened over tokens, zeros at padding.

    In evaluation mode. Holds all states of the samples: n L S H floats.
    """
    model.train(False)
    states: list[list[Tensor]] = [[] for _ in range(model.num_layers)]
    for part in by_length(shard, rows, CHUNK):
        batch = shard.batch(part)
        for layer, hidden in zip(states, model.forward(batch, hidden=True).hidden, strict=True):
            layer.append((hidden.float() * batch.real(hidden)).cpu())
    units = (normalize(_joined(layer).double(), dim=1) for layer in states)
    return torch.stack([spread(unit @ unit.T) for unit in units]).float()


def _joined(parts: list[Tensor]) -> Tensor:
    """(n, S H) from parts (c, S_c, H)."""
    longest = max(part.shape[1] for part in parts)
    joined = parts[0].new_zeros(sum(map(len, parts)), longest, parts[0].shape[2])
    for part, rows in zip(parts, joined.split([len(part) for part in parts]), strict=True):
        rows[:, : part.shape[1]] = part
    return joined.flatten(1)
