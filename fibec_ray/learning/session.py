"""The session a solver works with: a device's model, and training on its data."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice

import torch
from torch import Tensor

from fibec_ray import seeds
from fibec_ray.learning.guarded_steps import Guard
from fibec_ray.learning.job import LocalTraining
from fibec_ray.learning.local_update import FREE, PLAIN, Moves, Steps, Terms, Trained, features_under, local_update
from fibec_ray.model_types import Batch, LocalModel, Shard
from fibec_ray.parts.solver.base import LossOf, Pull
from fibec_ray.tensors import Tensors, accumulate, drop, weighted_mean


@dataclass(frozen=True)
class Schedule:
    """The batches, settings and seeds of all trainings in a session."""

    batches: Callable[[range], Iterable[Tensor]]
    """local epochs -> their batches, in training order"""
    settings: LocalTraining
    rate: float
    seed: int
    place: tuple[seeds.Where, ...]
    """seed path of dropout"""


@dataclass
class LocalSession:
    """Implements `Session`. The model must hold `received`."""

    model: LocalModel
    shard: Shard
    schedule: Schedule
    initial: Tensors
    received: Tensors
    shared: frozenset[str]
    terms: Terms = PLAIN
    """without references, which are computed when first needed"""
    moves: Moves = FREE
    """what the mask leaves free, and what it watches"""
    guard: Guard | None = None
    """of each training step"""
    visible: Sequence[Tensor] = ()
    """the batches whose features the objective's teachers need"""
    _done: list[Trained] = field(default_factory=list)
    _counted: list[Trained] = field(default_factory=list)

    @property
    def personal(self) -> frozenset[str]:
        """See `Session.personal`."""
        return frozenset(drop(self.received, self.shared))

    def read(self) -> Tensors:
        """See `Session.read`."""
        return self.model.read()

    def load(self, values: Tensors) -> None:
        """See `Session.load`."""
        self.model.load(values)

    @property
    def epochs(self) -> int:
        """See `Session.epochs`."""
        return self.schedule.settings.epochs

    @property
    def rate(self) -> float:
        """See `Session.rate`."""
        return self.schedule.rate

    @property
    def clip(self) -> float | None:
        """See `Session.clip`."""
        return self.schedule.settings.clip

    def generator(self, purpose: str) -> torch.Generator:
        """See `Session.generator`."""
        return seeds.generator(self.schedule.seed, purpose, *self.schedule.place)

    def descend(self, step: Callable[[LossOf], float]) -> None:
        """See `Session.descend`."""
        settings = self.schedule.settings
        rows = list(islice(self.schedule.batches(range(settings.epochs)), settings.max_steps))
        self.model.train(False)
        losses = [step(partial(self._loss, self.shard.batch(each))) for each in rows]
        mean = math.fsum(losses) / len(losses) if losses else None
        trained = Trained(len(rows), sum(map(len, rows)), mean, {})
        self._done.append(trained)
        self._counted.append(trained)

    @torch.no_grad()
    def _loss(self, batch: Batch, values: Tensors) -> float:
        """Mean loss of a batch at these values, which stay in the model."""
        self.model.load(values)
        return float(self.model.forward(batch).losses.double().mean())

    def gradient(self) -> Tensors:
        """See `Session.gradient`."""
        rows = list(islice(self.schedule.batches(range(1)), self.schedule.settings.max_steps))
        params = self.model.trainable
        sums = {name: torch.zeros(param.shape) for name, param in params.items()}
        self.model.train(False)
        for each in rows:
            out, _ = self.model.per_sample_grads(self.shard.batch(each))
            with torch.enable_grad():
                loss = out.losses.mean()
            grads = self.model.grad(loss, list(params.values()))
            found = {name: grad for name, grad in zip(params, grads, strict=True) if grad is not None}
            accumulate(sums, {name: grad.cpu() for name, grad in found.items()})
        mean = {name: value / len(rows) for name, value in sums.items()}
        return mean | {name: mean[name] * mask for name, mask in self.moves.keep.items() if name in mean}

    def train(
        self,
        *,
        moves: Collection[str] | None = None,
        first_epoch: int = 0,
        epochs: int | None = None,
        repeats: int = 1,
        rate: float = 1.0,
        pull: Pull | None = None,
        own_model: bool = False,
    ) -> Tensors:
        """See `Session.train`."""
        plan = self.schedule
        count = plan.settings.epochs if epochs is None else epochs
        place = (*plan.place, first_epoch) if first_epoch else plan.place
        batches = plan.batches(range(first_epoch, first_epoch + count))
        steps = Steps(batches, plan.settings, plan.rate * rate, repeats)
        terms = PLAIN if own_model else replace(self.terms, references=self._references)
        chosen = replace(self.moves, names=moves, pull=pull, watch=() if own_model else self.moves.watch)
        with seeds.seeded_third_party(plan.seed, *place):
            trained = local_update(self.model, self.shard, steps, terms, chosen, self.guard)
        if not own_model:
            self._done.append(trained)
            if moves is None or self.shared.intersection(moves):
                self._counted.append(trained)
        return trained.centre

    @cached_property
    def _references(self) -> tuple[Tensor, ...]:
        """Features of the visible samples under the objective's teachers, computed once a round."""
        teachers = self.terms.objective.teachers(self.received, self.terms.memory)
        return tuple(features_under(values, self.model, self.shard, self.visible) for values in teachers)

    @property
    def trained(self) -> Trained:
        """Totals of all training of the shared model. Training of only personal tensors adds only its squared
        gradients.
        """
        squares = weighted_mean((part.num_samples, part.squares) for part in self._done if part.squares)
        num_steps = sum(part.num_steps for part in self._counted)
        num_samples = sum(part.num_samples for part in self._counted)
        return Trained(num_steps, num_samples, _mean_loss(self._counted), squares)


def _mean_loss(parts: Sequence[Trained]) -> float | None:
    if len(parts) == 1:
        return parts[0].mean_loss
    losses = [(part.num_steps, part.mean_loss) for part in parts if part.mean_loss is not None]
    steps = sum(count for count, _ in losses)
    return math.fsum(count * loss for count, loss in losses) / steps if steps else None
