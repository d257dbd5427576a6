"""Scores over a vocabulary and their losses, in parts where all scores at once would be too large.

For R tokens and V words the scores are (R, V), and a training pass keeps several tensors of this size. With 32 lanes of
8 x 128 tokens and 151,000 words each has 20 GB. In parts, only one part exists at a time. The gradient in the states is
computed beside the losses, so that no part is computed twice (Hsu et al. 2024, "Liger Kernel").

Shapes: R tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fibec_ray.model_types import LateScores

MOST_SCORES = 2**26
"""Most scores computed at once: 256 MiB in float32."""

Head = Callable[[Tensor], Tensor]
"""states (R, H) -> scores (R, V), float32"""


def token_scores(head: nn.Module, states: Tensor) -> Tensor | LateScores:
    """Scores of tokens, (R, V) float32, computed on demand if they are large.

    head: the language-model head. states: (R, H).
    """
    if fits(head, len(states)):
        scores: Tensor = head(states.unsqueeze(0)).squeeze(0).float()
        return scores
    return in_parts(head, states)


def fits(head: nn.Module, num_tokens: int) -> bool:
    """True if the scores of so many tokens are computed at once."""
    return num_tokens * vocabulary_of(head) <= MOST_SCORES or not _is_constant(head)


def in_parts(head: nn.Module, states: Tensor, bias: Tensor | None = None) -> ScoresInParts:
    """Scores that are computed part by part. bias: added to the head's output, as in BART."""

    def scores_of(states: Tensor) -> Tensor:
        logits: Tensor = head(states.unsqueeze(0)).squeeze(0)
        return (logits if bias is None else logits + bias).float()

    return ScoresInParts(scores_of, states, vocabulary_of(head))


def token_losses(scores: Tensor | LateScores, targets: Tensor) -> Tensor:
    """(R,) cross-entropies of the targets (R,)."""
    if isinstance(scores, LateScores):
        return scores.losses(targets)
    return F.cross_entropy(scores, targets, reduction="none")


def vocabulary_of(head: nn.Module) -> int:
    """V: the outputs of the head's last Linear."""
    return max((child.out_features for child in head.modules() if isinstance(child, nn.Linear)), default=0)


def _is_constant(head: nn.Module) -> bool:
    """True if the head is frozen, and not fetched by DeepSpeed, which expects one call per pass."""
    return not any(p.requires_grad or hasattr(p, "ds_id") for p in head.parameters())


class ScoresInParts(LateScores):
    """Scores of R tokens that are computed part by part, in the graph of the states."""

    def __init__(self, head: Head, states: Tensor, vocabulary: int, best: Tensor | None = None):
        self._head, self._states, self._vocabulary, self._best = head, states, vocabulary, best

    @property
    def _rows(self) -> int:
        """Tokens of a part."""
        return max(1, MOST_SCORES // self._vocabulary)

    def compute(self) -> Tensor:
        return self._head(self._states)

    def losses(self, targets: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            found: Tensor = _Losses.apply(self._states, targets, self._head, self._rows)
            return found
        parts = zip(self._states.split(self._rows), targets.split(self._rows), strict=True)
        pairs = [_evaluated(self._head(states), own) for states, own in parts]
        self._best = torch.cat([best for _, best in pairs])
        return torch.cat([losses for losses, _ in pairs])

    def split(self, sizes: Sequence[int]) -> list[ScoresInParts]:
        parts = self._states.split(list(sizes))
        bests = [None] * len(parts) if self._best is None else self._best.split(list(sizes))
        return [ScoresInParts(self._head, own, self._vocabulary, best) for own, best in zip(parts, bests, strict=True)]

    @torch.no_grad()
    def argmax(self, dim: int) -> Tensor:
        assert dim == 1, "the likeliest word of each token"
        if self._best is None:
            self._best = torch.cat([self._head(part).argmax(1) for part in self._states.split(self._rows)])
        return self._best


def _evaluated(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Losses of a part and its likeliest words, (r,) each."""
    return F.cross_entropy(scores, targets, reduction="none"), scores.argmax(1)


class _Losses(torch.autograd.Function):
    """Cross-entropies of states (R, H) with targets (R,), `rows` tokens at a time. The head is constant."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, targets: Tensor, head: Head, rows: int) -> Tensor:
        parts = zip(states.split(rows), targets.split(rows), strict=True)
        found = [_part(head, *part, ctx.needs_input_grad[0]) for part in parts]
        ctx.head = head
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(states, targets, torch.cat([grads for _, grads in found]))
        return torch.cat([losses for losses, _ in found])

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        (states, targets, grads), cotangent = ctx.saved_tensors, cotangents[0]
        if not torch.is_grad_enabled():
            return grads * cotangent.unsqueeze(1).to(grads.dtype), None, None, None
        # A Hessian differentiates the gradient itself, which needs the graph of all scores.
        losses = F.cross_entropy(ctx.head(states), targets, reduction="none")
        return *torch.autograd.grad(losses, states, cotangent, create_graph=True), None, None, None


def _part(head: Head, states: Tensor, targets: Tensor, needs_grad: bool) -> tuple[Tensor, Tensor]:
    """Losses of a part, (r,), and their gradients in its states, (r, H)."""
    with torch.set_grad_enabled(needs_grad):
        own = states.detach().requires_grad_(needs_grad)
        losses = F.cross_entropy(head(own), targets, reduction="none")
        grads = torch.autograd.grad(losses.sum(), own)[0] if needs_grad else own
    return losses.detach(), grads
