"""A device's local training: the steps of one round, or of a part of it; called by session.py."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from fibec_ray.learning.job import LocalTraining
from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.solver.base import Pull
from fibec_ray.per_sample import Caught, catch
from fibec_ray.tensors import Tensors, clone, select, squared_distance
from fibec_ray.types import LocalModel, Shard


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
) -> Trained:
    """Takes one optimiser step for each batch (or `repeats`), in place in the model.

    keep: bool tensors, True where an entry may move. Entries that may not are bit-identical afterwards: weight decay
    and momentum would move them even without a gradient, so they are put back after every step.
    watch: tensors whose squared gradients are wanted; they come from the steps' own backward passes.
    moves: the tensors that move; None: all.
    """
    steps = _Steps(model, shard, settings, learning_rate, objective, keep, memory, hint, watch, moves, pull)
    num_samples = num_batches = 0
    model.train(True)
    for rows in islice(batches, settings.max_steps):
        for _ in range(repeats):
            steps.take(rows)
        steps.follow()
        num_batches += 1
        num_samples += len(rows)
    model.train(False)
    squares = {name: value.cpu() / (num_samples * repeats) for name, value in steps.squares.items()}
    mean_loss = float(torch.stack(steps.losses).double().mean()) if steps.losses else None
    centre = {name: value.cpu() for name, value in steps.centre.items()}
    return Trained(num_batches, num_samples, mean_loss, squares, centre)


class _Steps:
    """Takes steps with one optimiser, and adds up what they met. Arguments as of `local_update`."""

    def __init__(
        self,
        model: LocalModel,
        shard: Shard,
        settings: LocalTraining,
        learning_rate: float,
        objective: Objective,
        keep: Mapping[str, Tensor],
        memory: Tensors,
        hint: Tensors,
        watch: Collection[str],
        moves: Collection[str] | None,
        pull: Pull | None,
    ):
        self._model, self._shard, self._clip = model, shard, settings.clip
        self._objective, self._memory, self._hint, self._pull = objective, memory, hint, pull
        self._params = dict(model.trainable)
        self._moving = self._params if moves is None else {n: p for n, p in self._params.items() if n in moves}
        self._anchor = clone(self._moving)
        self._frozen = {n: ~mask.to(self._moving[n].device) for n, mask in keep.items() if n in self._moving}
        self._watch = [name for name in watch if name in self._moving]
        self._optimizer = _optimizer(settings, self._moving, learning_rate)
        centre = select(pull.centre, self._moving) if pull else {}
        self.centre = {name: value.to(self._params[name], copy=True) for name, value in centre.items()}
        self.losses: list[Tensor] = []
        self.squares: Tensors = {}

    def take(self, rows: Tensor) -> None:
        """One optimiser step on the samples at `rows`."""
        for param in self._params.values():
            param.grad = None
        with catch(self._model.holders, self._watch, len(rows)) as caught:
            loss = self._model.forward(self._shard.batch(rows)).losses.mean()
        for tensor in caught.tensors:
            tensor.retain_grad()
        self._with_terms(loss).backward()
        _accumulate(self.squares, caught, len(rows))
        self._objective.correct(self._params, self._memory, self._hint)
        _zero_masked(self._moving, self._frozen)
        if self._clip is not None:
            nn.utils.clip_grad_norm_(self._moving.values(), self._clip)
        self._optimizer.step()
        _restore_masked(self._moving, self._frozen, self._anchor)
        self.losses.append(loss.detach())

    @torch.no_grad()
    def follow(self) -> None:
        """After the steps on a batch: the centre of the pull goes its share of the way."""
        if self._pull is not None and self._pull.follow:
            for name, value in self.centre.items():
                value.lerp_(self._params[name], self._pull.follow)

    def _with_terms(self, loss: Tensor) -> Tensor:
        penalty = self._objective.penalty(self._params, self._anchor)
        total = loss if penalty is None else loss + penalty
        if self._pull is not None and self.centre:
            total = total + 0.5 * self._pull.strength * squared_distance(self._params, self.centre)
        return total


def _accumulate(squares: Tensors, caught: Caught, num_samples: int) -> None:
    """Adds a batch's squared per-sample gradients; the loss was their mean, so gradients are scaled back to a sum."""
    if not caught.tensors:
        return
    batch = caught.squares([tensor.grad for tensor in caught.tensors], scale=num_samples)
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
