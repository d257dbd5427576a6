"""A device's local training: the steps of one round, or of a part of it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from fibec_ray.curvature.per_sample import Caught
from fibec_ray.learning.features import features
from fibec_ray.learning.job import LocalTraining
from fibec_ray.model_types import Batch, LocalModel, Outputs, Shard
from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.solver.base import Pull
from fibec_ray.tensors import Tensors, clone, select


@dataclass(frozen=True)
class Trained:
    num_steps: int
    num_samples: int
    """visited, repeats over epochs included"""
    mean_loss: float | None
    """of the task alone, over steps, before each step; None if there were none"""
    squares: Tensors
    """mean squared per-sample gradients of the watched tensors, each at the parameters of its step"""
    centre: Tensors = field(default_factory=dict)
    """where the centre of the pull ended"""


def local_update(
    model: LocalModel,
    shard: Shard,
    batches: Iterable[Tensor],
    settings: LocalTraining,
    learning_rate: float,
    objective: Objective,
    keep: Mapping[str, Tensor],
    memory: Tensors,
    hint: Tensors,
    watch: Collection[str] = (),
    moves: Collection[str] | None = None,
    pull: Pull | None = None,
    repeats: int = 1,
    references: Sequence[Tensor] = (),
) -> Trained:
    """Takes one optimiser step for each batch (or `repeats`), in place in the model.

    keep: bool tensors, True where an entry may move. Entries that may not are bit-identical afterwards: weight decay
    and momentum would move them even without a gradient, so they are put back after every step.
    watch: tensors whose squared gradients are wanted; they come from the steps' own backward passes.
    moves: the tensors that move; None: all. references: (n, H) each, of the objective's teachers.
    """
    params = dict(model.trainable)
    moving = params if moves is None else {name: param for name, param in params.items() if name in moves}
    terms = _Terms(objective, memory, hint, clone(moving), references)
    towards = _Towards(pull, moving, learning_rate)
    frozen = {name: ~mask.to(moving[name].device) for name, mask in keep.items() if name in moving}
    watched = [name for name in watch if name in moving]
    optimizer = _optimizer(settings, moving, learning_rate)
    steps = _Steps(model, shard, moving, frozen, watched, terms, towards, optimizer, settings)
    num_samples = num_batches = 0
    model.train(True)
    for rows in islice(batches, settings.max_steps):
        for _ in range(repeats):
            steps.take(rows)
        towards.follow()
        num_batches += 1
        num_samples += len(rows)
    model.train(False)
    squares = {name: value.cpu() / (num_samples * repeats) for name, value in steps.squares.items()}
    mean_loss = float(torch.stack(steps.losses).double().mean()) if steps.losses else None
    centre = {name: value.cpu() for name, value in towards.centre.items()}
    return Trained(num_batches, num_samples, mean_loss, squares, centre)


@dataclass
class _Terms:
    """What is added to the task's loss of each step."""

    objective: Objective
    memory: Tensors
    hint: Tensors
    anchor: Tensors
    """what moves, as it was when training began"""
    references: Sequence[Tensor]

    def added_to(self, loss: Tensor, params: Mapping[str, Tensor], out: Outputs, batch: Batch, rows: Tensor) -> Tensor:
        penalty = self.objective.penalty(params, self.anchor)
        total = loss if penalty is None else loss + penalty
        if self.references:
            near = [reference[rows.to(reference.device)] for reference in self.references]
            total = total + self.objective.feature_penalty(features(out, batch), near)
        return total


class _Towards:
    """The pull, if there is one, and its centre as it is now."""

    def __init__(self, pull: Pull | None, params: Mapping[str, nn.Parameter], rate: float):
        centre = select(pull.centre, params) if pull else {}
        self.centre = {name: value.to(params[name], copy=True) for name, value in centre.items()}
        self._params = params
        self._share = 1 - 1 / (1 + rate * pull.strength) if pull else 0.0
        self._follow = pull.follow if pull else 0.0

    @torch.no_grad()
    def step(self) -> None:
        """After an optimiser step: the pull's own one, solved exactly."""
        if self._share:
            for name, value in self.centre.items():
                self._params[name].lerp_(value, self._share)

    @torch.no_grad()
    def follow(self) -> None:
        """After the steps on a batch: the centre goes its share of the way."""
        for name, value in self.centre.items():
            value.lerp_(self._params[name], self._follow)


@dataclass
class _Steps:
    """Takes steps with one optimiser, and adds up what they met."""

    model: LocalModel
    shard: Shard
    moving: Mapping[str, nn.Parameter]
    frozen: Tensors
    """bool, True where an entry of what moves may not"""
    watched: Collection[str]
    terms: _Terms
    towards: _Towards
    optimizer: torch.optim.Optimizer
    settings: LocalTraining
    losses: list[Tensor] = field(default_factory=list)
    squares: Tensors = field(default_factory=dict)

    def take(self, rows: Tensor) -> None:
        """One optimiser step on the samples at `rows`."""
        params, batch = self.model.trainable, self.shard.batch(rows)
        out, caught = self.model.watched(batch, self.watched, hidden=bool(self.terms.references))
        loss = out.losses.mean()
        total = self.terms.added_to(loss, params, out, batch, rows)
        grads = self.model.grad(total, [*params.values(), *caught.tensors])
        for param, grad in zip(params.values(), grads, strict=False):
            # PyTorch's fused optimisers take a gradient's memory for that of a contiguous tensor.
            param.grad = None if grad is None else grad.contiguous()
        _accumulate(self.squares, caught, grads[len(params) :], len(rows))
        self.terms.objective.correct(params, self.terms.memory, self.terms.hint)
        self._step()
        self.losses.append(loss.detach())

    def _step(self) -> None:
        _zero_masked(self.moving, self.frozen)
        if self.settings.clip is not None:
            nn.utils.clip_grad_norm_(self.moving.values(), self.settings.clip)
        self.optimizer.step()
        self.towards.step()
        _restore_masked(self.moving, self.frozen, self.terms.anchor)


def _accumulate(squares: Tensors, caught: Caught, grads: Sequence[Tensor | None], num_samples: int) -> None:
    """Adds a batch's squared per-sample gradients; the loss was their mean, so gradients are scaled back to a sum."""
    batch = caught.squares(grads, scale=num_samples)
    for name, value in batch.items():
        total = value.sum(0)
        squares[name] = squares[name].add_(total) if name in squares else total


def _optimizer(settings: LocalTraining, params: Mapping[str, nn.Parameter], rate: float) -> torch.optim.Optimizer:
    values = list(params.values())
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            values, lr=rate, momentum=settings.momentum, weight_decay=settings.weight_decay, fused=True
        )
    return torch.optim.AdamW(values, lr=rate, weight_decay=settings.weight_decay, fused=True)


def _zero_masked(params: Mapping[str, nn.Parameter], frozen: Tensors) -> None:
    """Before clipping, so that entries that cannot move do not count in the gradient's norm."""
    for name, mask in frozen.items():
        grad = params[name].grad
        if grad is not None:
            grad.masked_fill_(mask, 0.0)


@torch.no_grad()
def _restore_masked(params: Mapping[str, nn.Parameter], frozen: Tensors, anchor: Tensors) -> None:
    for name, mask in frozen.items():
        params[name].copy_(torch.where(mask, anchor[name], params[name]))
