"""What a solver gets to work with: a device's model, and training on its data."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from fibec_ray import seeds
from fibec_ray.learning.features import features_under
from fibec_ray.learning.job import LocalTraining
from fibec_ray.learning.local_update import Trained, local_update
from fibec_ray.model_types import LocalModel, Shard
from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.solver.base import Pull
from fibec_ray.tensors import Tensors, drop, weighted_mean


@dataclass
class LocalSession:
    """Implements `Session`. The model must hold `received`."""

    model: LocalModel
    shard: Shard
    batches: Callable[[range], Iterable[Tensor]]
    """of the given local epochs, in the order of training"""
    local: LocalTraining
    learning_rate: float
    initial: Tensors
    received: Tensors
    shared: frozenset[str]
    seed: int
    dropout: tuple[seeds.Where, ...]
    """the place that dropout belongs to"""
    keep: Mapping[str, Tensor] = field(default_factory=dict)
    """of the mask"""
    objective: Objective = Objective()
    memory: Tensors = field(default_factory=dict)
    """of the objective"""
    hint: Tensors = field(default_factory=dict)
    watch: Collection[str] = ()
    """tensors whose squared gradients the mask wants"""
    visible: Sequence[Tensor] = ()
    """the batches that the objective's teachers look at"""
    _done: list[Trained] = field(default_factory=list)
    _counted: list[Trained] = field(default_factory=list)

    @property
    def personal(self) -> frozenset[str]:
        return frozenset(drop(self.received, self.shared))

    def read(self) -> Tensors:
        return self.model.read()

    def load(self, values: Tensors) -> None:
        self.model.load(values)

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
        count = self.local.epochs if epochs is None else epochs
        place = (*self.dropout, first_epoch) if first_epoch else self.dropout
        objective, watch = (Objective(), ()) if own_model else (self.objective, self.watch)
        references = () if own_model else self._references
        with seeds.seeded_third_party(self.seed, *place):
            trained = local_update(
                self.model,
                self.shard,
                self.batches(range(first_epoch, first_epoch + count)),
                self.local,
                self.learning_rate * rate,
                objective,
                self.keep,
                self.memory,
                self.hint,
                watch,
                moves,
                pull,
                repeats,
                references,
            )
        if not own_model:
            self._done.append(trained)
            if moves is None or self.shared.intersection(moves):
                self._counted.append(trained)
        return trained.centre

    @cached_property
    def _references(self) -> tuple[Tensor, ...]:
        """Features of the visible samples under the objective's teachers, found once for the round."""
        teachers = self.objective.teachers(self.received, self.memory)
        return tuple(features_under(values, self.model, self.shard, self.visible) for values in teachers)

    @property
    def trained(self) -> Trained:
        """All training of the shared model; of what moved personal tensors alone, the squared gradients only."""
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
