"""A device's local training: the optimiser steps of one round or part of it, and the features that an objective uses.

Shapes: B samples of a batch, n of a shard, S tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from fibec_ray.curvature.fisher import by_length
from fibec_ray.errors import ConfigError
from fibec_ray.learning.guarded_steps import Guard, GuardedSteps
from fibec_ray.learning.job import LocalTraining
from fibec_ray.learning.optimiser_step import OptimiserStep, add_grad
from fibec_ray.model_types import Batch, LocalModel, Outputs, Shard
from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.solver.base import Pull
from fibec_ray.tensors import Tensors, accumulate


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

    def mean_of(self, losses: Tensor) -> Tensor:
        """Mean of the samples' losses (B,), each times the objective's factor."""
        return (losses * self.weights(losses)).mean() if self.objective.has_weights else losses.mean()

    def weights(self, losses: Tensor) -> Tensor:
        """The objective's factor for each loss (B,). Raises ConfigError unless there is one for each."""
        found = self.objective.weigh(losses.detach())
        if found.shape != losses.shape:
            raise ConfigError(
                f"method.objective: {self.objective.kind}: weigh returned {tuple(found.shape)} values for "
                f"{len(losses)} losses; return one for each"
            )
        return found

    def added_to(self, loss: Tensor, params: Mapping[str, Tensor], anchor: Tensors, seen: Seen) -> Tensor:
        """The loss plus the objective's terms. anchor: the moving tensors when training began."""
        penalty = self.penalty(params, anchor)
        total = loss if penalty is None else loss + penalty
        return total + self.feature_penalty(seen) if self.references else total

    def penalty(self, params: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> Tensor | None:
        """The objective's term for the parameters. Raises ConfigError if it is not one value."""
        found = self.objective.penalty(params, anchor)
        if found is not None and found.numel() != 1:
            raise ConfigError(
                f"method.objective: {self.objective.kind}: penalty returned {tuple(found.shape)} values; return one"
            )
        return found

    def feature_penalty(self, seen: Seen) -> Tensor:
        """The objective's term for the features of a batch; there must be references."""
        near = [reference[seen.rows.to(reference.device)] for reference in self.references]
        return self.objective.feature_penalty(features(seen.out, seen.batch), near)

    def on(self, device: torch.device) -> Terms:
        """A copy with memory and control on a torch device. Changing the copy's memory does not change this one's."""
        memory, control = ({n: v.to(device) for n, v in one.items()} for one in (self.memory, self.control))
        return replace(self, memory=memory, control=control)


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


@dataclass(frozen=True, eq=False)
class Training:
    """One device's training: a model that holds the device's values, its data, and what to do."""

    model: LocalModel
    shard: Shard
    steps: Steps
    terms: Terms = PLAIN
    moves: Moves = FREE
    guard: Guard | None = None
    """of each step; None: steps are not protected"""


@runtime_checkable
class TrainsInGroup(Protocol):
    """A model whose training is computed together with that of other devices."""

    def train_in_group(self, training: Training) -> Trained:
        """Take the steps, changing the model's values in place."""


def local_update(
    model: LocalModel,
    shard: Shard,
    steps: Steps,
    terms: Terms = PLAIN,
    moves: Moves = FREE,
    guard: Guard | None = None,
) -> Trained:
    """Take the steps, changing the model in place."""
    training = Training(model, shard, steps, terms, moves, guard)
    return model.train_in_group(training) if isinstance(model, TrainsInGroup) else _train_alone(training)


def _train_alone(training: Training) -> Trained:
    model, steps = training.model, training.steps
    device = next((value.device for value in model.trainable.values()), torch.device("cpu"))
    rows = list(islice(steps.batches, steps.settings.max_steps))
    batches = [(each.to(device), training.shard.batch(each).to(device)) for each in rows]
    trainer = _Trainer(replace(training, terms=training.terms.on(device)))
    model.train(True)
    for batch in batches:
        for _ in range(steps.repeats):
            trainer.take(*batch)
        trainer.optimiser.follow()
    model.train(False)
    training.terms.memory.update({name: value.cpu() for name, value in trainer.terms.memory.items()})
    num_samples = sum(map(len, rows))
    squares = {name: value.cpu() / (num_samples * steps.repeats) for name, value in trainer.squares.items()}
    mean_loss = float(torch.stack(trainer.losses).double().mean()) if trainer.losses else None
    centre = {name: value.cpu() for name, value in trainer.optimiser.centre.items()}
    return Trained(len(rows), num_samples, mean_loss, squares, centre)


class _Trainer:
    """Takes steps with one optimiser, and sums losses and squared gradients."""

    def __init__(self, training: Training):
        steps, moves = training.steps, training.moves
        self._model, self.terms = training.model, training.terms
        self._params, names = dict(training.model.trainable), moves.names
        moving = self._params if names is None else {name: p for name, p in self._params.items() if name in names}
        self._watch = [name for name in moves.watch if name in moving]
        self._guarded = None if training.guard is None else _guarded(training.guard, moving, moves.keep)
        self.optimiser = OptimiserStep(moving, steps.settings, steps.rate, moves.keep, moves.pull)
        self.losses: list[Tensor] = []
        self.squares: Tensors = {}

    def take(self, rows: Tensor, batch: Batch) -> None:
        """Take one optimiser step on a batch, the samples at `rows`."""
        losses = self._differentiate(rows, batch) if self._guarded is None else self._guard(self._guarded, batch)
        self.terms.objective.correct(self._params, self.terms.memory, self.terms.control)
        self.optimiser.step()
        self.losses.append(losses.detach().mean())

    def _differentiate(self, rows: Tensor, batch: Batch) -> Tensor:
        """Set the gradients of the loss, and add up squared ones. Returns the samples' losses."""
        params, terms = self._params, self.terms
        out, caught = self._model.per_sample_grads(batch, self._watch, hidden=bool(terms.references))
        total = terms.added_to(terms.mean_of(out.losses), params, self.optimiser.anchor, Seen(rows, batch, out))
        grads = self._model.grad(total, [*params.values(), *caught.tensors])
        for param, grad in zip(params.values(), grads, strict=False):
            # PyTorch's fused optimisers treat a gradient's memory as contiguous.
            param.grad = None if grad is None else grad.contiguous()
        # The loss is a mean over samples; scale gradients back to those of a sum.
        squares = caught.squares(grads[len(params) :], scale=len(rows))
        accumulate(self.squares, {name: value.sum(0) for name, value in squares.items()})
        return out.losses

    def _guard(self, guarded: GuardedSteps, batch: Batch) -> Tensor:
        """The same with clipped gradients of samples and noise; the penalty, which knows no sample, has neither."""
        out, caught = self._model.per_sample_grads(batch, guarded.names)
        grads = self._model.grad(out.losses.sum(), caught.tensors)
        counted = torch.ones(1, batch.num_samples, dtype=torch.bool, device=out.losses.device)
        means = guarded.mean(guarded.sums(caught, grads, [0], counted), counted.sum(1))
        for name, param in self._params.items():
            param.grad = means[name][0].to(param).contiguous() if name in means else None
        penalty = self.terms.penalty(self._params, self.optimiser.anchor)
        if penalty is not None and penalty.requires_grad:
            found = torch.autograd.grad(penalty, list(self._params.values()), allow_unused=True)
            for param, grad in zip(self._params.values(), found, strict=True):
                add_grad(param, grad, None)
        return out.losses


def _guarded(guard: Guard, moving: Mapping[str, nn.Parameter], keep: Mapping[str, Tensor]) -> GuardedSteps:
    masks = {name: mask.to(moving[name].device)[None] for name, mask in keep.items() if name in moving}
    return GuardedSteps([guard], {name: param.shape for name, param in moving.items()}, masks)


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
