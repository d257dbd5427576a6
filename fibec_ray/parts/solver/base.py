"""The neutral solver: one training. The contract of all solvers, and what the engine lends them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Protocol

from fibec_ray.parts.part import Part
from fibec_ray.tensors import Tensors


@dataclass(frozen=True)
class Pull:
    """(strength / 2) |w - centre|^2 beside the loss, over the tensors of the centre.

    Its gradient is no part of the optimiser's, as AdamW's weight decay is none: after each step of rate r,
    w <- (w + r strength centre) / (1 + r strength), the exact minimum of |w' - w|^2 / 2r and the pull. With plain SGD
    that is the step down both, to first order in r; a pull of any strength is stable, and clipping does not see it.
    """

    centre: Tensors
    strength: float
    follow: float = 0.0
    """share of the way to w that the centre goes after the steps on a batch"""


class Session(Protocol):
    """A device's model and training data in one round, lent to a solver. At first the model holds `received`."""

    @property
    def initial(self) -> Tensors:
        """All trainable values at the start of the run, the same on every device."""

    @property
    def received(self) -> Tensors:
        """All trainable values at the start of the round: shared ones as sent, the others as the device left them."""

    @property
    def shared(self) -> frozenset[str]:
        """The names of the tensors that are communicated."""

    @property
    def personal(self) -> frozenset[str]:
        """The names of the others."""

    def read(self) -> Tensors:
        """Copies of the model's trainable values."""

    def load(self, values: Tensors) -> None:
        """Puts values into the model."""

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
        """Trains the model from where it is, with an optimiser of its own; returns where the centre of the pull ended.

        moves: the tensors that move; None: all. epochs: passes over the batches; None: as many as `local` says. The
        same `first_epoch` gives the same batches in the same order, and the same dropout. repeats: optimiser steps on
        each batch, which are one step of the round in the log, and before `local.max_steps`. rate: factor on the
        learning rate.
        own_model: True if what is trained is not the model that is shared: without the objective's terms, and not in
        the log's steps, samples and training loss. (Its work is: flops and time count all that a device computes.)
        """


class Solver(Part):
    """How a device solves its local problem, and which model is its own.

    `solve` takes the place of a round's training; `own` and `tune` make the model that a personal evaluation scores.
    As it stands: one training, and the device's own model is the shared and the personal tensors.
    """

    former_kinds: ClassVar[tuple[str, ...]] = ("once",)
    kind: str = "single"

    @property
    def has_own_model(self) -> bool:
        """True if a device's own model is not the global one even where all tensors are shared."""
        return type(self).own is not Solver.own or type(self).tune is not Solver.tune

    def solve(self, session: Session, memory: Tensors) -> Tensors:
        """Leaves the model as the device has it after the round; returns the new memory (at first it is empty)."""
        session.train()
        return memory

    def own(self, memory: Tensors) -> Tensors:
        """The values that the device's own model has in place of those it would share or keep."""
        return {}

    def tune(self, session: Session) -> None:
        """Work on the device's own model right before it is scored; nothing of it is stored, sent or logged."""
