"""The diagonal Fisher information of a device's data, from batched backward passes.

The Fisher information of sample i is E_y[g_iy g_iy^T] with g_iy the gradient of -log p(y | s_i); only its diagonal,
E_y[g_iy^2], is used. There are three choices of labels y:
- observed: y is the sample's label (the empirical Fisher information, as in FibecFed's description);
- expected: y ~ p(. | s_i) of the model, exact: C backward passes on one forward pass;
- sampled: one y drawn from p(. | s_i).
The last two use p over the task's C classes; with a verbaliser, over its label words only. In a regression y is a
value, and p is normal around the model's output with variance 1. With several yes-or-no labels, p is the product of
their probabilities. For text answers y is a token at each position of the response, drawn given the data's tokens
before it, and the gradient is that of their mean, as in the loss; "expected" is not available because there are too
many tokens. `likelihoods` has the formulas.

Shapes: B samples of a group, n samples of a shard, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fibec_ray import seeds
from fibec_ray.curvature.per_sample import Caught
from fibec_ray.likelihoods import Label
from fibec_ray.model_types import LocalModel, Outputs, Shard
from fibec_ray.tensors import Tensors, accumulate
from fibec_ray.word_counts import word_counts

Scope = Literal["adapter", "all"]
"""adapter: the tensors that PEFT added; all: a head too, whose gradients dominate while it is random"""


@dataclass(frozen=True)
class Fisher:
    """Results of one pass over some batches."""

    traces: Tensor
    """(n,) float32: trace of the Fisher information of each sample of the shard; NaN for rows in no batch"""
    losses: Tensor
    """(n,) float32 loss of each sample with its own label; NaN for rows in no batch"""
    diagonal: Tensors
    """(1/n) sum_i of the samples' diagonals, shaped like the tensors, float32"""


class FisherScan:
    """Squared gradients over batches at the model's current parameters. Each pass runs when it is first needed.

    A curriculum and a mask with the same request share one pass. Results belong to samples, not to batches, so samples
    are processed in groups of similar length to save padding. Memory is bounded by one group.

    names: the tensors that may be requested. rng: for sampled labels. words: returns the token counts of all devices'
    training texts, as `word_counts` does; None: those of the shard.
    """

    def __init__(
        self,
        model: LocalModel,
        shard: Shard,
        batches: Sequence[Tensor],
        names: Collection[str],
        rng: torch.Generator,
        words: Callable[[], Tensor] | None = None,
    ):
        self.model, self.shard = model, shard
        self.batches = batches
        """rows of each batch, (B,) int64 positions within the shard"""
        self._names, self._rng = frozenset(names), rng
        self._found: dict[tuple[Label, Scope], Fisher] = {}
        self._with_dropout: dict[tuple[Label, Scope], Fisher] = {}
        self._losses: Tensor | None = None
        self._words = words

    def words_of_all(self) -> Tensor:
        """How often each token occurs in the training texts of all devices, (V,) int64.

        Only curricula with `pools_words` may call this, since only their messages are counted.
        """
        return word_counts(self.shard) if self._words is None else self._words()

    @property
    def found(self) -> Fisher | None:
        """The first pass in evaluation mode that has run, if any."""
        return next(iter(self._found.values()), None)

    @property
    def losses(self) -> Tensor:
        """(n,) float32, in evaluation mode; NaN for rows in no batch. Needs a forward pass unless another pass has
        run.
        """
        if self.known_losses is None:
            self._losses = self._forward()
        assert self.known_losses is not None
        return self.known_losses

    @property
    def known_losses(self) -> Tensor | None:
        """`losses` if a pass has computed them, for the round log; else None."""
        return self.found.losses if self.found else self._losses

    def read(self, label: Label = "observed", scope: Scope = "adapter", dropout: bool = False) -> Fisher:
        """Run a pass, or return its result. In evaluation mode unless `dropout` is on.

        Raises ModelError if the scope has a tensor in an unknown kind of module.
        """
        found = self._with_dropout if dropout else self._found
        if (label, scope) not in found:
            found[label, scope] = self._dropping(label, scope) if dropout else self._pass(label, scope)
        return found[label, scope]

    def _dropping(self, label: Label, scope: Scope) -> Fisher:
        """A pass with dropout on, drawn from the scan's own generator."""
        seed = int(torch.randint(1 << 62, (), generator=self._rng))
        with seeds.seeded_third_party(seed, "dropout"):
            found = self._pass(label, scope, dropout=True)
        self.model.train(False)
        return found

    @torch.no_grad()
    def _forward(self) -> Tensor:
        losses = torch.full((self.shard.num_samples,), float("nan"))
        self.model.train(False)
        for group in self._groups():
            losses[group] = self.model.forward(self.shard.batch(group)).losses.float().cpu()
        return losses

    def _groups(self) -> list[Tensor]:
        return by_length(self.shard, torch.cat(list(self.batches)), max(len(batch) for batch in self.batches))

    def _pass(self, label: Label, scope: Scope, dropout: bool = False) -> Fisher:
        model, shard = self.model, self.shard
        names = [n for n in model.trainable if n in self._names and (scope == "all" or model.is_adapter(n))]
        # One number per sample, so that drawn labels do not depend on the grouping of samples.
        draws = torch.rand(shard.num_samples, generator=self._rng) if label == "sampled" else None
        traces = torch.full((shard.num_samples,), float("nan"))
        losses = traces.clone()
        sums: Tensors = {}
        num_samples = sum(len(batch) for batch in self.batches)
        model.train(dropout)
        for group in self._groups():
            squares, losses[group] = batch_squares(
                model, shard, group, names, label, None if draws is None else draws[group]
            )
            traces[group] = sum((value.flatten(1).sum(1).cpu() for value in squares.values()), torch.zeros(len(group)))
            accumulate(sums, {name: value.sum(0).cpu() for name, value in squares.items()})
        return Fisher(traces, losses, {name: value / num_samples for name, value in sums.items()})


def batch_squares(
    model: LocalModel,
    shard: Shard,
    rows: Tensor,
    names: Collection[str],
    label: Label = "observed",
    draws: Tensor | None = None,
) -> tuple[Tensors, Tensor]:
    """Squared gradients E_y[g_iy^2], (B, *shape) each, of the named tensors, and losses (B,) float32.

    rows: the samples. draws: (B,) uniform in [0, 1), for sampled labels. The caller switches dropout on or off.
    """
    totals: Tensors = {}
    losses = torch.empty(0)
    for out, caught, grads, weights in label_passes(model, shard, rows, names, label, draws):
        losses = out.losses.detach().float().cpu()
        accumulate(totals, weighted(caught.squares(grads), weights))
    return totals, losses


def weighted(values: Tensors, weights: Tensor | None) -> Tensors:
    """Multiply values of samples, (B, *shape) each, by the samples' weights (B,), in place; None: 1."""
    if weights is not None:
        for value in values.values():
            value.mul_(weights.view(-1, *[1] * (value.dim() - 1)))
    return values


class LabelPass(NamedTuple):
    """One backward pass over some samples, for their labels or for one of all expected labels."""

    out: Outputs
    caught: Caught
    grads: Sequence[Tensor | None]
    """gradients of the sum of -log p, or of log p, for `caught.tensors`"""
    weights: Tensor | None
    """(B,) weight of the squared gradients, such as the label's probability; None: 1"""


def label_passes(
    model: LocalModel,
    shard: Shard,
    rows: Tensor,
    names: Collection[str],
    label: Label = "observed",
    draws: Tensor | None = None,
) -> Iterator[LabelPass]:
    """One forward pass over the samples at `rows`, then one backward pass per label of the expectation."""
    before = model.work.backward_flops
    out, caught = model.per_sample_grads(shard.batch(rows), names)
    backward_flops = model.work.backward_flops - before  # the model counts one backward pass
    with torch.enable_grad():
        targets = list(_targets(out, label, draws))
    for i, (values, weights) in enumerate(targets):
        model.work.flops += backward_flops if i else 0.0
        # Gradients of the outputs, not of the weights, so the sum over samples is never formed.
        grads = model.grad(values.sum(), caught.tensors, retain_graph=i + 1 < len(targets))
        yield LabelPass(out, caught, grads, weights)


def _targets(out: Outputs, label: Label, draws: Tensor | None) -> Iterator[tuple[Tensor, Tensor | None]]:
    """(B,) values to differentiate, and weights (B,) of their squared gradients (None: 1)."""
    if label == "expected":
        yield from out.likelihood.expected(out.scores)
    elif label == "sampled":
        assert draws is not None, "sampled labels need draws"
        yield out.likelihood.sampled(out.scores, draws), None
    else:
        yield out.losses, None


def by_length(shard: Shard, rows: Tensor, size: int) -> list[Tensor]:
    """Split `rows` into groups of `size`, shortest samples first (ties in the given order)."""
    return list(rows[torch.argsort(shard.lengths[rows], stable=True)].split(size))


def momentum(previous: Tensors, new: Tensors, gamma: float) -> Tensors:
    """FibecFed's momentum FIM: F^t = gamma F^{t-1} + (1 - gamma) F~^t. A tensor without a previous value gets F~."""
    return {n: gamma * previous[n] + (1 - gamma) * value if n in previous else value for n, value in new.items()}
