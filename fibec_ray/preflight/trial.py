"""Stand-ins for what a device passes to a method's parts. They record calls and return made-up numbers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fibec_ray.curvature.fisher import Fisher, FisherScan, Scope
from fibec_ray.likelihoods import Label
from fibec_ray.model_types import Batch, LocalModel, Shard
from fibec_ray.parts.solver.base import LossOf, Pull
from fibec_ray.tensors import Tensors, clone, drop, select

Ask = tuple[Label, Scope] | None
"""A pass for squared gradients; None: for losses only."""


def blank(tensors: Mapping[str, Tensor]) -> Tensors:
    """Zeros of the same shapes, on the CPU."""
    return {name: torch.zeros(value.shape, dtype=value.dtype) for name, value in tensors.items()}


class TrialShard:
    """A shard of made-up samples with known lengths. make: (B, S) -> a batch. padded: fixed S of every batch, if
    given.
    """

    def __init__(self, make: Callable[[int, int], Batch], lengths: Tensor, padded: int | None = None):
        self._make, self._padded, self.num_samples = make, padded, len(lengths)
        self.lengths, self.labels, self.true_difficulty = lengths, torch.zeros(len(lengths)), None

    def batch(self, rows: Tensor) -> Batch:
        return self._make(len(rows), self._padded or int(self.lengths[rows].max()))

    def shortened(self, max_length: int) -> TrialShard:
        return TrialShard(self._make, self.lengths.clamp(max=max_length), self._padded)


class TrialScan(FisherScan):
    """A scan that records passes. diagonal: made-up, for all tensors. rng: for made-up traces and losses."""

    def __init__(
        self, model: LocalModel, shard: Shard, batches: Sequence[Tensor], diagonal: Tensors, rng: torch.Generator
    ):
        super().__init__(model, shard, batches, diagonal, rng)
        self.asked: list[Ask] = []
        """the passes that it would run, in order"""
        self._diagonal = diagonal

    def _forward(self) -> Tensor:
        self.asked.append(None)
        return torch.rand(self.shard.num_samples, generator=self._rng)

    def _pass(self, label: Label, scope: Scope, dropout: bool = False) -> Fisher:
        self.asked.append((label, scope))
        numbers = torch.rand(self.shard.num_samples, generator=self._rng)
        names = [name for name in self._diagonal if scope == "all" or self.model.is_adapter(name)]
        return Fisher(numbers, numbers, select(self._diagonal, names))


@dataclass(frozen=True)
class Training:
    """A call of `Session.train` or `Session.descend`. `Session.gradient` counts as training for one epoch."""

    epochs: int
    repeats: int
    own_model: bool
    forwards: int = 0
    """forward passes in each step of training without gradients; 0: a step is a forward and a backward pass"""


@dataclass
class TrialSession:
    """Implements `Session`. initial, received: made-up. epochs: of `local`. server_only: not trained by devices."""

    initial: Tensors
    received: Tensors
    shared: frozenset[str]
    server_only: Collection[str]
    epochs: int
    trainings: list[Training] = field(default_factory=list)
    rate: float = 0.0
    clip: float | None = None

    @property
    def personal(self) -> frozenset[str]:
        """See `Session.personal`."""
        return frozenset(drop(self.received, self.shared))

    def read(self) -> Tensors:
        """See `Session.read`."""
        return clone(self.received)

    def load(self, values: Tensors) -> None:
        """Does nothing: all values are made up."""

    def generator(self, purpose: str) -> torch.Generator:
        """See `Session.generator`."""
        return torch.Generator().manual_seed(0)

    def descend(self, step: Callable[[LossOf], float]) -> None:
        """See `Session.descend`."""
        asked: list[Tensors] = []

        def loss_of(values: Tensors) -> float:
            asked.append(values)
            return 0.0

        step(loss_of)
        self.trainings.append(Training(self.epochs, 1, False, len(asked)))

    def gradient(self) -> Tensors:
        """See `Session.gradient`."""
        self.trainings.append(Training(1, 1, True))
        return drop(blank(self.received), self.server_only)

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
        self.trainings.append(Training(self.epochs if epochs is None else epochs, repeats, own_model))
        centre = drop(pull.centre, self.server_only) if pull else {}
        return clone({name: value for name, value in centre.items() if moves is None or name in moves})
