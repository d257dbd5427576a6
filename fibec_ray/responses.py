"""Answers that are texts: a batch's response tokens, and tokens drawn in their place.

A sample's loss is the mean over its response's tokens, end token included, each predicted from the ones before it:

    l_i = (1 / T_i) sum_t -log p(y_it | prompt_i, y_i1 ... y_i,t-1)

Prompt and padding are left out. Samples have equal weight whatever the length of their responses, here and wherever
losses, gradients and Fisher information are averaged. Perplexity is the exception: it gives tokens equal weight.

Shapes: B samples, T_i tokens of a response, R of all together, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SEEDS = 2**24
"""Number of different values that torch.rand gives in float32: the seeds of generators of drawn tokens."""


@dataclass(frozen=True)
class ResponseTokens:
    """The tokens of a batch's responses, or its tokens with tags, sample by sample."""

    targets: Tensor
    """(R,) int64 token ids, or tags"""
    sample: Tensor
    """(R,) int64, ascending: the sample that each belongs to"""
    column: Tensor
    """(R,) int64: the position whose output predicts it: of a response's token the one before its own, of a tag or
    of a decoder's target its own"""
    counts: Tensor
    """(B,) int64, tokens of each sample's response, >= 1"""
    longest: int
    """tokens of the longest response, or more"""
    on_host: tuple[int, ...] | None = None
    """`counts` in host memory; None: not read yet"""

    @property
    def sizes(self) -> tuple[int, ...]:
        """`counts` as plain numbers. Waits for the device unless they are known already."""
        return tuple(self.counts.tolist()) if self.on_host is None else self.on_host

    def means(self, values: Tensor) -> Tensor:
        """(R,) -> (B,): over the tokens of each response."""
        return self.sums(values) / self.counts

    def sums(self, values: Tensor) -> Tensor:
        """(R,) -> (B,). On a grid of all places, because adding up by index has no fixed order on a GPU."""
        return self.grid(values, 0).sum(1)

    def grid(self, values: Tensor, fill: float) -> Tensor:
        """(R, ...) -> (B, longest, ...): each sample's values in its own row, and `fill` behind them."""
        starts = self.counts.cumsum(0) - self.counts
        at = torch.arange(len(self.sample), device=values.device) - starts[self.sample]
        grid = values.new_full((len(self.counts), self.longest, *values.shape[1:]), fill)
        return grid.index_put((self.sample, at), values)

    def exact(self, scores: Tensor) -> Tensor:
        """(B,) int64: 1 where greedy decoding from the prompt gives exactly this response. scores: (R, V).

        Decoding gives the response if and only if each of its tokens is the likeliest one after the tokens before it,
        so one forward pass over the response is enough.
        """
        right = (scores.argmax(1) == self.targets).long()
        return (self.sums(right) == self.counts).long()

    def draw(self, scores: Tensor, draws: Tensor) -> Tensor:
        """(R,) token ids, each drawn from its own softmax of scores (R, V), given the response's own tokens before it.

        draws: (B,) uniform in [0, 1). Each seeds the generator of its sample, so that a sample's tokens depend neither
        on the other samples of the batch nor on their order.
        """
        uniform = torch.cat([uniform_draws(count, draw) for count, draw in zip(self.sizes, draws, strict=True)])
        ends = scores.float().softmax(1).cumsum(1)
        at = uniform.to(ends).unsqueeze(1) * ends[:, -1:]
        return torch.searchsorted(ends, at, right=True).squeeze(1).clamp(max=scores.shape[1] - 1)

    def split(self, sizes: list[int]) -> list[ResponseTokens]:
        """Those of the first `sizes[0]` samples, of the next, and so on."""
        found, known, first, start = [], self.sizes, 0, 0
        for counts in self.counts.split(sizes):
            own = known[first : first + len(counts)]
            rows = slice(start, start + sum(own))
            of = self.targets[rows], self.sample[rows] - first, self.column[rows]
            found.append(ResponseTokens(*of, counts, self.longest, own))
            first, start = first + len(counts), rows.stop
        return found

    @classmethod
    def join(cls, parts: Sequence[ResponseTokens], firsts: Sequence[int]) -> ResponseTokens:
        """The tokens of several batches, one after the other. firsts: the number of each batch's first sample."""
        targets, column, counts = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("targets", "column", "counts")
        )
        sample = torch.cat([part.sample + first for part, first in zip(parts, firsts, strict=True)])
        sizes = tuple(size for part in parts for size in part.sizes)
        return cls(targets, sample, column, counts, max(part.longest for part in parts), sizes)

    def to(self, device: torch.device) -> ResponseTokens:
        """A copy on another torch device."""
        targets, sample, column, counts = (
            value.to(device) for value in (self.targets, self.sample, self.column, self.counts)
        )
        return ResponseTokens(targets, sample, column, counts, self.longest, self.sizes)


def locate(input_ids: Tensor, attention_mask: Tensor, answer_at: Tensor) -> ResponseTokens:
    """Of right-padded samples (B, S) whose prompts end at `answer_at` (B,): all real tokens behind it."""
    columns, lengths = torch.arange(input_ids.shape[1]), attention_mask.sum(1)
    inside = (columns > answer_at.unsqueeze(1)) & (columns < lengths.unsqueeze(1))
    sample, column = inside.nonzero(as_tuple=True)
    counts = inside.sum(1)
    return _tokens(input_ids[sample, column], sample, column - 1, counts)


def at_labels(labels: Tensor, no_label: int) -> ResponseTokens:
    """Tokens of samples (B, S) with a label each, by position. Tokens with `no_label` are left out."""
    sample, column = (labels != no_label).nonzero(as_tuple=True)
    counts = (labels != no_label).sum(1)
    return _tokens(labels[sample, column], sample, column, counts)


def _tokens(targets: Tensor, sample: Tensor, column: Tensor, counts: Tensor) -> ResponseTokens:
    sizes = tuple(counts.tolist())
    return ResponseTokens(targets, sample, column, counts, max(sizes), sizes)


def uniform_draws(count: int, draw: Tensor) -> Tensor:
    """(count,) uniform in [0, 1), from a generator that `draw`, uniform in [0, 1) itself, is the seed of."""
    return torch.rand(count, generator=torch.Generator().manual_seed(int(draw * SEEDS)))
