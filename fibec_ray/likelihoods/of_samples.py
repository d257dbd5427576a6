"""Likelihoods of samples that have one vector of scores each.

Shapes: B samples, C scores of a sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fibec_ray.likelihoods.base import Cotangents, Likelihood
from fibec_ray.responses import uniform_draws

SMALLEST_DRAW = 2.0**-25
"""Replaces a drawn 0, whose normal quantile is infinite: half of torch.rand's smallest float32 step."""


@dataclass(frozen=True)
class Categorical(Likelihood):
    """One of C classes with probabilities softmax(scores); the loss is the cross-entropy. Labels (B,) int64."""

    name = "categorical"

    @classmethod
    def num_columns(cls, num_scores: int) -> int:
        return num_scores - 1

    def losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(scores, labels, reduction="none")

    def predicted(self, scores: Tensor) -> Tensor:
        """(B,) class ids."""
        return scores.argmax(1)

    def expected(self, scores: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        log_probs = scores.float().log_softmax(1)
        probs = log_probs.detach().exp()
        return ((log_probs[:, c], probs[:, c]) for c in range(probs.shape[1]))

    def sampled(self, scores: Tensor, draws: Tensor) -> Tensor:
        log_probs = scores.float().log_softmax(1)
        probs = log_probs.detach().exp()
        drawn = (probs.cumsum(1) < draws.to(probs.device).unsqueeze(1)).sum(1).clamp(max=probs.shape[1] - 1)
        return log_probs.gather(1, drawn.unsqueeze(1)).squeeze(1)

    def columns(self, scores: Tensor, draws: Tensor | None = None) -> Cotangents:
        factor = softmax_factor(scores.detach())
        return factor.shape[2], lambda c: factor[:, :, c]


@dataclass(frozen=True)
class Normal(Likelihood):
    """A real value around its score (C = 1) with variance 1; half the squared error. Labels (B,) float32."""

    name = "normal"
    most_scores = 1

    @classmethod
    def num_columns(cls, num_scores: int) -> int:
        return 1

    def losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        return 0.5 * (scores[:, 0] - labels).square()

    def predicted(self, scores: Tensor) -> Tensor:
        """(B,) values."""
        return scores[:, 0]

    def expected(self, scores: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """-log p = (y - s)^2 / 2 has the gradient -(y - s) s'. Its square is s'^2 in expectation."""
        yield scores[:, 0], None

    def sampled(self, scores: Tensor, draws: Tensor) -> Tensor:
        noise = torch.special.ndtri(draws.clamp(min=SMALLEST_DRAW)).to(scores)
        return noise * scores[:, 0]

    def columns(self, scores: Tensor, draws: Tensor | None = None) -> Cotangents:
        return 1, lambda c: torch.ones_like(scores)


@dataclass(frozen=True)
class Bernoulli(Likelihood):
    """C independent yes-or-no labels with log-odds as scores; the loss is the sum of their cross-entropies.

    Labels (B, C), 0 or 1.
    """

    name = "bernoulli"

    @classmethod
    def num_columns(cls, num_scores: int) -> int:
        return num_scores

    def losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(scores, labels.to(scores), reduction="none").sum(1)

    def predicted(self, scores: Tensor) -> Tensor:
        """(B, C) int64, 1 for the labels that are more likely than not."""
        return (scores > 0).long()

    def truth(self, labels: Tensor) -> Tensor:
        return labels.long()

    def expected(self, scores: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """The gradient is the sum over labels of (y_c - p_c) s_c'. Labels are independent, so its square is the sum of
        p_c (1 - p_c) s_c'^2 in expectation.
        """
        scores = scores.float()
        probs = scores.detach().sigmoid()
        return ((scores[:, c], probs[:, c] * (1 - probs[:, c])) for c in range(scores.shape[1]))

    def sampled(self, scores: Tensor, draws: Tensor) -> Tensor:
        scores = scores.float()
        between = torch.stack([uniform_draws(scores.shape[1], draw) for draw in draws]).to(scores)
        return self.losses(scores, between < scores.detach().sigmoid())

    def columns(self, scores: Tensor, draws: Tensor | None = None) -> Cotangents:
        probs = scores.detach().float().sigmoid()
        factor = (probs * (1 - probs)).sqrt()

        def column(c: int) -> Tensor:
            only = torch.zeros_like(factor)
            only[:, c] = factor[:, c]
            return only

        return factor.shape[1], column


@dataclass(frozen=True)
class Preferences(Bernoulli):
    """Which of two responses is better: the score is the log-odds of the first one (Bradley and Terry 1952).

    Keeps what evaluations need beside the score. Labels (B, 1), 1 where the first response is better.
    """

    rewards: Tensor
    """(B, 2) of both responses; the score is their difference"""
    reference: Tensor
    """(B, 2) log-probabilities of both responses without the adapter"""

    most_scores = 1

    def predicted(self, scores: Tensor) -> Tensor:
        """(B, 4) both rewards, then both log-probabilities without the adapter."""
        return torch.cat([self.rewards, self.reference], dim=1)

    def split(self, sizes: Sequence[int]) -> Sequence[Preferences]:
        parts = zip(self.rewards.split(list(sizes)), self.reference.split(list(sizes)), strict=True)
        return [Preferences(rewards, reference) for rewards, reference in parts]


def softmax_factor(scores: Tensor) -> Tensor:
    """Factor the softmax curvature: scores (B, C) -> L (B, C, C - 1) with L L^T = S = diag(p) - p p^T for each sample.

    S = M M^T with M = diag(s) - p s^T, s = sqrt(p), has C columns, and M s = 0. So M W is also a factor, for any
    orthonormal basis W of the complement of s. The Householder reflection that maps s to -e_C gives L[:, c] = M[:, c] -
    M[:, C] s_c / (1 + s_C).
    """
    p = scores.float().softmax(1)
    s = p.sqrt()
    wide = torch.diag_embed(s) - p.unsqueeze(2) * s.unsqueeze(1)
    return wide[:, :, :-1] - wide[:, :, -1:] * (s[:, :-1] / (1 + s[:, -1:])).unsqueeze(1)
