"""The base class of all solvers (used as it is: one training), and the session that solvers work with."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fibec_ray.parts.part import Part
from fibec_ray.tensors import Tensors


@dataclass(frozen=True)
class Pull:
    """Adds (strength / 2) |w - centre|^2 to the loss, over the tensors of the centre.

    Its gradient does not enter the optimiser, like AdamW's weight decay. After each step at rate r, w <- (w + r
    strength centre) / (1 + r strength), the exact minimum of |w' - w|^2 / 2r plus the pull. With plain SGD that equals
    a step on both terms, to first order in r. It is stable for any strength, and clipping does not affect it.
    """

    centre: Tensors
    strength: float
    follow: float = 0.0
    """share of the way to w that the centre moves after the steps on a batch"""


LossOf = Callable[[Tensors], float]
"""Values of the trainable tensors -> the mean loss of a batch at these values, without dropout."""


class Session(Protocol):
    """A device's model and training data in one round, for use by a solver. Initially the model holds `received`."""

    @property
    def initial(self) -> Tensors:
        """All trainable values at the start of the run; the same on every device."""

    @property
    def received(self) -> Tensors:
        """All trainable values at the start of the round: shared ones as sent, personal ones as the device left
        them.
        """

    @property
    def shared(self) -> frozenset[str]:
        """The names of the communicated tensors."""

    @property
    def personal(self) -> frozenset[str]:
        """The names of the personal tensors."""

    @property
    def epochs(self) -> int:
        """Passes over the batches in a round, as set in `local`."""

    @property
    def rate(self) -> float:
        """The learning rate of the round."""

    @property
    def clip(self) -> float | None:
        """Largest norm of a gradient, as set in `local`; None: no limit."""

    def generator(self, purpose: str) -> torch.Generator:
        """A new random generator for the device and round. The same purpose gives the same numbers."""

    def read(self) -> Tensors:
        """Copy the model's trainable values."""

    def load(self, values: Tensors) -> None:
        """Set the model's trainable values."""

    def gradient(self) -> Tensors:
        """The mean gradient of the plain loss over the batches of one epoch, at the model's current values.

        Computed without dropout; 0 where a mask freezes entries. Its cost is part of the logged flops and time.
        """

    def descend(self, step: Callable[[LossOf], float]) -> None:
        """Train without gradients: call `step` for each batch of the round's epochs, in training order.

        step: gets the batch's loss as a function of the trainable values. It takes one step, in its own way, and
        returns the loss for the log. Steps, samples and losses count as those of `train`.
        """

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
        """Train the model from its current values with a fresh optimiser; return the final centre of the pull.

        moves: names of the tensors that move; None: all. epochs: passes over the batches; None: as set in `local`. The
        same `first_epoch` gives the same batches in the same order, and the same dropout. repeats: optimiser steps on
        each batch; they count as one step in the log and for `local.max_steps`. rate: factor on the learning rate.
        own_model: True if the trained model is not the shared one. Training then uses no terms of the objective and
        does not count in the log's steps, samples and training loss. Flops and time count it.
        """


class Solver(Part):
    """How a device solves its local problem, and which model is its own.

    `solve` does a round's training. `own` and `tune` make the model that a personal evaluation scores. By default: one
    training, and the device's own model is the shared and the personal tensors.
    """

    former_kinds: ClassVar[tuple[str, ...]] = ("once",)
    kind: str = "single"

    @property
    def has_own_model(self) -> bool:
        """True if a device's own model differs from the global one even when all tensors are shared."""
        changed = type(self).own is not Solver.own or type(self).tune is not Solver.tune
        return changed or self.num_references > 0

    @property
    def num_references(self) -> int:
        """Training samples that each test sample is compared with, for `mixed`; 0: one model scores all samples."""
        return 0

    def solve(self, session: Session, memory: Tensors) -> Tensors:
        """Train, and leave the model in its state after the round. Returns the new memory; the first memory is
        empty.
        """
        session.train()
        return memory

    def own(self, memory: Tensors) -> Tensors:
        """Values that replace trainable tensors in the device's own model."""
        return {}

    def mixed(self, shared: Tensors, memory: Tensors, likeness: Tensor) -> Tensors:
        """A model for each of B test samples: (B, ...) values of all trainable tensors.

        shared: the values of the shared model. memory: as `solve` returned it, not empty. likeness: (B,) mean cosine of
        a sample's features and those of some of the device's training samples. LoRA may have another rank than in
        training.
        """
        raise NotImplementedError(self.kind)

    def tune(self, session: Session) -> None:
        """Change the device's own model just before it is scored; the result is not stored, sent or logged."""
