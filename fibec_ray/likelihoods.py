"""The distributions that a model's scores are parameters of; a loss is a negative log likelihood.

Curvature needs three things of a distribution p(y | s) with scores s: the gradients of log p for all labels y or for a
drawn one (Fisher information), and a factor L with L L^T = S, the curvature of -log p in the scores (Gauss-Newton
matrix).

Shapes: B samples, C scores of a sample, R tokens of all samples' responses, V labels of a token (a vocabulary or tags).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from fibec_ray.errors import ModelError
from fibec_ray.responses import ResponseTokens, uniform_draws

Label = Literal["observed", "expected", "sampled"]
"""The labels y in Fisher information: the data's, all of them weighted by p(y | s), or one drawn from p(y | s)."""

SMALLEST_DRAW = 2.0**-25
"""Replaces a drawn 0, whose normal quantile is infinite: half of torch.rand's smallest float32 step."""
TOKEN_DRAWS = 4
"""Drawn responses per sample in the Gauss-Newton matrix of `Tokens`; each costs a backward pass."""

TOO_MANY_LABELS = "answers of several tokens have too many labels for label: expected; set label to sampled or observed"

Cotangents = tuple[int, Callable[[int], Tensor]]
"""Number of columns of L, and a function that returns the c-th one in the shape of the scores."""


class Likelihood(ABC):
    """A distribution over the labels of a sample, independent between samples."""

    name: ClassVar[str]
    """in `LIKELIHOODS` and `Answers.likelihood`"""
    num_draws: ClassVar[int] = 0
    """draws per sample that `columns` needs; 0: its columns are exact"""
    most_scores: ClassVar[int | None] = None
    """the most scores that it takes; None: any number"""

    @classmethod
    def num_labels(cls, num_scores: int) -> int | None:
        """Backward passes of the exact expectation over labels; None: there are too many labels for it."""
        return num_scores

    @classmethod
    @abstractmethod
    def num_columns(cls, num_scores: int) -> int:
        """Columns of the Gauss-Newton factor L per sample."""

    @abstractmethod
    def losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        """(B,) -log p(labels | scores), up to a constant."""

    @abstractmethod
    def predicted(self, scores: Tensor) -> Tensor:
        """(B, ...) the likeliest labels."""

    def truth(self, labels: Tensor) -> Tensor:
        """(B, ...) the values that `predicted` is compared with."""
        return labels

    @abstractmethod
    def expected(self, scores: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Values (B,) whose squared gradients, times weights (B,) (None: 1), sum to E_y[(d log p(y | s))^2].

        Raises ModelError if there are too many labels.
        """

    @abstractmethod
    def sampled(self, scores: Tensor, draws: Tensor) -> Tensor:
        """(B,) values with the gradient of log p(y | s), or its negative, at drawn labels y.

        draws: (B,) uniform in [0, 1), one for each sample, so that labels do not depend on the batch.
        """

    @abstractmethod
    def columns(self, scores: Tensor, draws: Tensor | None = None) -> Cotangents:
        """The columns of L. draws: (B, m) uniform in [0, 1), where `num_draws` is not 0: m columns, in expectation."""

    def split(self, sizes: Sequence[int]) -> Sequence[Likelihood]:
        """The likelihoods of the first `sizes[0]` samples, of the next ones, and so on."""
        return [self] * len(sizes)

    def rows(self, sizes: Sequence[int]) -> list[int]:
        """Rows of the scores of the first `sizes[0]` samples, of the next ones, and so on."""
        return list(sizes)

    @property
    def num_tokens(self) -> Tensor | None:
        """(B,) int64 tokens that each loss is the mean over; None where samples have one label each."""
        return None


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


@dataclass(frozen=True, eq=False)
class Tokens(Likelihood):
    """One of V labels for each of a sample's T tokens; the loss is the mean of their cross-entropies (`responses.py`).

    Scores: (R, V). `losses` takes the labels from `response.targets` and ignores its argument. Each token is drawn
    given the data's tokens before it.

    A sequence has too many labels for an exact expectation, and with a vocabulary the exact L has too many columns. L
    is therefore estimated. For drawn tokens y_t, e_t = p_t - onehot(y_t) has mean 0 and second moment S_t, so m columns
    e_t / sqrt(T m) have L L^T = S in expectation (Martens 2020, "New insights and perspectives on the natural gradient
    method").
    """

    response: ResponseTokens

    name = "tokens"
    num_draws = TOKEN_DRAWS

    @classmethod
    def num_labels(cls, num_scores: int) -> int | None:
        return None

    @classmethod
    def num_columns(cls, num_scores: int) -> int:
        return TOKEN_DRAWS

    def losses(self, scores: Tensor, labels: Tensor) -> Tensor:
        return self.response.means(F.cross_entropy(scores, self.response.targets, reduction="none"))

    def predicted(self, scores: Tensor) -> Tensor:
        """(B,) int64, 1 where greedy decoding gives exactly the response."""
        return self.response.exact(scores)

    def truth(self, labels: Tensor) -> Tensor:
        """(B,) ones."""
        return torch.ones_like(self.response.counts)

    def expected(self, scores: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        raise ModelError(TOO_MANY_LABELS)

    def sampled(self, scores: Tensor, draws: Tensor) -> Tensor:
        drawn = self.response.draw(scores.detach(), draws)
        return self.response.means(F.cross_entropy(scores, drawn, reduction="none"))

    @torch.no_grad()
    def columns(self, scores: Tensor, draws: Tensor | None = None) -> Cotangents:
        assert draws is not None, "columns of drawn tokens need draws"
        response, num, scores = self.response, draws.shape[1], scores.detach()
        p = scores.float().softmax(1)
        scale = (response.counts * num).rsqrt()[response.sample].unsqueeze(1)

        def column(c: int) -> Tensor:
            drawn = response.draw(scores, draws[:, c])
            return p.scatter_add(1, drawn.unsqueeze(1), -torch.ones_like(p[:, :1])) * scale

        return num, column

    def split(self, sizes: Sequence[int]) -> Sequence[Tokens]:
        return [Tokens(part) for part in self.response.split(list(sizes))]

    def rows(self, sizes: Sequence[int]) -> list[int]:
        return [len(part.targets) for part in self.response.split(list(sizes))]

    @property
    def num_tokens(self) -> Tensor:
        return self.response.counts


LIKELIHOODS: Mapping[str, type[Likelihood]] = {
    likelihood.name: likelihood for likelihood in (Categorical, Normal, Bernoulli, Tokens)
}
"""By name."""


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
