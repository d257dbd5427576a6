"""The likelihood of sequences of tokens.

Shapes: B samples, T tokens of a response, R of all responses, V labels of a token (a vocabulary or tags), m draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from fibec_ray.errors import ModelError
from fibec_ray.likelihoods.base import TOO_MANY_LABELS, Cotangents, Likelihood
from fibec_ray.responses import ResponseTokens

TOKEN_DRAWS = 4
"""Drawn responses per sample in the Gauss-Newton matrix; each costs a backward pass."""
NO_TAG = -1
"""Fills up rows of tags behind the tags of a sample."""


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
        return [type(self)(part) for part in self.response.split(list(sizes))]

    def rows(self, sizes: Sequence[int]) -> list[int]:
        ends = [0, *accumulate(sizes)]
        known = self.response.sizes
        return [sum(known[first:end]) for first, end in pairwise(ends)]

    @property
    def num_tokens(self) -> Tensor:
        return self.response.counts


class Tags(Tokens):
    """One of V tags for some tokens of a sample, at least one; the loss is the mean of their cross-entropies.

    A sample's predictions are its tags, in the order of its tokens, and NO_TAG behind them up to the most tags of a
    sample.
    """

    name = "tags"

    def predicted(self, scores: Tensor) -> Tensor:
        """(B, T) int64 the likeliest tags."""
        return self._rows(scores.argmax(1), NO_TAG)

    def truth(self, labels: Tensor) -> Tensor:
        """(B, T) int64 the tags of the data."""
        return self._rows(self.response.targets, NO_TAG)

    def by_sample(self, scores: Tensor) -> Tensor:
        """(B, T, V), NaN where a sample has fewer tags."""
        return self._rows(scores, math.nan)

    def _rows(self, values: Tensor, fill: float) -> Tensor:
        """(R, ...) -> (B, T, ...). T does not depend on samples of other lanes."""
        return self.response.grid(values, fill)[:, : max(self.response.sizes)]
