"""A device's local training: the optimiser steps of one round or part of it, and the features that an objective uses.

Shapes: B samples of a batch, n of a shard, S tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fibec_ray.curvature.fisher import by_length
from fibec_ray.errors import ConfigError
from fibec_ray.learning.job import LocalTraining
from fibec_ray.model_types import Batch, LocalModel, Outputs, Shard
from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.solver.base import Pull
from fibec_ray.tensors import Tensors, accumulate, clone, select


@dataclass(frozen=True)
class Trained:
    """What training did, for the update and the log."""

    num_steps: int
    num_samples: int
    """samples used, counting repeats over epochs"""
    mean_loss: float | None
    """task loss only, averaged over steps, before each step; None without steps"""
    squares: Tensors
    """mean squared per-sample gradients of the watched tensors, each at its step's parameters"""
    centre: Tensors = field(default_factory=dict)
    """final centre of the pull"""


@dataclass(frozen=True)
class Steps:
    """The optimiser steps to take: `repeats` on each batch, for up to `settings.max_steps` batches."""

    batches: Iterable[Tensor]
    settings: LocalTraining
    rate: float
    repeats: int = 1


@dataclass(frozen=True)
class Terms:
    """What an objective adds to the task's loss and gradients. By default nothing."""

    objective: Objective = Objective()
    memory: Tensors = field(default_factory=dict)
    """the objective's memory on the device; `Objective.correct` may add to it"""
    control: Tensors = field(default_factory=dict)
    """the objective's values from the server"""
    references: Sequence[Tensor] = ()
    """(n, H) each: features of the shard's samples under the objective's teachers"""

    def added_to(self, loss: Tensor, params: Mapping[str, Tensor], anchor: Tensors, seen: Seen) -> Tensor:
        """The loss plus the objective's terms. anchor: the moving tensors when training began."""
        penalty = self.objective.penalty(params, anchor)
        if penalty is not None and penalty.numel() != 1:
            raise ConfigError(
                f"method.objective: {self.objective.kind}: penalty returned {tuple(penalty.shape)} values; return one"
            )
        total = loss if penalty is None else loss + penalty
        if self.references:
            near = [reference[seen.rows.to(reference.device)] for reference in self.references]
            total = total + self.objective.feature_penalty(features(seen.out, seen.batch), near)
        return total


@dataclass(frozen=True)
class Moves:
    """Which tensors move, and what is measured of them. By default all move freely."""

    names: Collection[str] | None = None
    """the tensors that move; None: all"""
    keep: Mapping[str, Tensor] = field(default_factory=dict)
    """bool, True where an entry may move. Other entries stay bit-identical: they are restored after every step,
    since weight decay and momentum would move them even without a gradient
    """
    pull: Pull | None = None
    watch: Collection[str] = ()
    """tensors whose squared gradients are collected from the steps' own backward passes"""


class Seen(NamedTuple):
    """A batch, its rows in the shard, and the model's outputs."""

    rows: Tensor
    batch: Batch
    out: Outputs


PLAIN, FREE = Terms(), Moves()


def local_update(model: LocalModel, shard: Shard, steps: Steps, terms: Terms = PLAIN, moves: Moves = FREE) -> Trained:
    """Take the steps, changing the model in place."""
    trainer = _Trainer(model, shard, steps, terms, moves)
    num_samples = num_batches = 0
    model.train(True)
    for rows in islice(steps.batches, steps.settings.max_steps):
        for _ in range(steps.repeats):
            trainer.take(rows)
        trainer.pull.follow()
        num_batches += 1
        num_samples += len(rows)
    model.train(False)
    squares = {name: value.cpu() / (num_samples * steps.repeats) for name, value in trainer.squares.items()}
    mean_loss = float(torch.stack(trainer.losses).double().mean()) if trainer.losses else None
    centre = {name: value.cpu() for name, value in trainer.pull.centre.items()}
    return Trained(num_batches, num_samples, mean_loss, squares, centre)


class _PullStep:
    """The pull, if any, and its current centre."""

    def __init__(self, pull: Pull | None, params: Mapping[str, nn.Parameter], rate: float):
        centre = select(pull.centre, params) if pull else {}
        self.centre = {name: value.to(params[name], copy=True) for name, value in centre.items()}
        self._params = params
        self._share = 1 - 1 / (1 + rate * pull.strength) if pull else 0.0
        self._follow = pull.follow if pull else 0.0

    @torch.no_grad()
    def step(self) -> None:
        """After an optimiser step: take the pull's step, solved exactly."""
        if self._share:
            for name, value in self.centre.items():
                self._params[name].lerp_(value, self._share)

    @torch.no_grad()
    def follow(self) -> None:
        """After the steps on a batch: move the centre."""
        for name, value in self.centre.items():
            value.lerp_(self._params[name], self._follow)


class _Trainer:
    """Takes steps with one optimiser, and sums losses and squared gradients."""

    def __init__(self, model: LocalModel, shard: Shard, steps: Steps, terms: Terms, moves: Moves):
        self._model, self._shard, self._terms, self._clip = model, shard, terms, steps.settings.clip
        params, names = dict(model.trainable), moves.names
        self._moving = params if names is None else {name: p for name, p in params.items() if name in names}
        self._anchor = clone(self._moving)
        self._frozen = {n: ~mask.to(self._moving[n].device) for n, mask in moves.keep.items() if n in self._moving}
        self._watch = [name for name in moves.watch if name in self._moving]
        self._optimizer = _optimizer(steps.settings, self._moving, steps.rate)
        self.pull = _PullStep(moves.pull, self._moving, steps.rate)
        self.losses: list[Tensor] = []
        self.squares: Tensors = {}

    def take(self, rows: Tensor) -> None:
        """Take one optimiser step on the samples at `rows`."""
        params, batch, terms = self._model.trainable, self._shard.batch(rows), self._terms
        out, caught = self._model.per_sample_grads(batch, self._watch, hidden=bool(terms.references))
        loss = out.losses.mean()
        total = terms.added_to(loss, params, self._anchor, Seen(rows, batch, out))
        grads = self._model.grad(total, [*params.values(), *caught.tensors])
        for param, grad in zip(params.values(), grads, strict=False):
            # PyTorch's fused optimisers treat a gradient's memory as contiguous.
            param.grad = None if grad is None else grad.contiguous()
        # The loss is a mean over samples; scale gradients back to those of a sum.
        squares = caught.squares(grads[len(params) :], scale=len(rows))
        accumulate(self.squares, {name: value.sum(0) for name, value in squares.items()})
        terms.objective.correct(params, terms.memory, terms.control)
        self._step()
        self.losses.append(loss.detach())

    @torch.no_grad()
    def _step(self) -> None:
        for name, mask in self._frozen.items():
            if (grad := self._moving[name].grad) is not None:  # entries that cannot move do not count in the norm
                grad.masked_fill_(mask, 0.0)
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._moving.values(), self._clip)
        self._optimizer.step()
        self.pull.step()
        for name, mask in self._frozen.items():
            self._moving[name].copy_(torch.where(mask, self._anchor[name], self._moving[name]))


def _optimizer(settings: LocalTraining, params: Mapping[str, nn.Parameter], rate: float) -> torch.optim.Optimizer:
    values = list(params.values())
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            values, lr=rate, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True
        )
    return torch.optim.AdamW(values, lr=rate, weight_decay=settings.weight_decay, fused=True)


def features(out: Outputs, batch: Batch) -> Tensor:
    """The mean of a head's inputs over each sample's real tokens: (B, H) float32, in the graph.

    out: of the batch, with hidden states.
    """
    last = out.hidden[-1] if out.last is None else out.last
    real = batch.real(last)
    return (last.float() * real).sum(1) / real.sum(1)


@torch.no_grad()
def features_under(values: Tensors, model: LocalModel, shard: Shard, batches: Sequence[Tensor]) -> Tensor:
    """(n, H) features of the batches' samples with other trainable values, in evaluation mode; NaN elsewhere.

    The model's own values are restored afterwards.
    """
    before = model.read()
    model.load(values)
    model.train(False)
    parts = []
    groups = by_length(shard, torch.cat(list(batches)), max(map(len, batches)))
    for rows in groups:
        batch = shard.batch(rows)
        parts.append(features(model.forward(batch, hidden=True), batch))
    model.load(before)
    found = parts[0].new_full((shard.num_samples, parts[0].shape[1]), float("nan"))
    found[torch.cat(groups).to(found.device)] = torch.cat(parts)
    return found
