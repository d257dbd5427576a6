"""The base class of all masks; used as it is, it trains every entry."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import torch
from torch import Tensor

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.parts.part import Part
from fibec_ray.tensors import Tensors, select, under_prefix


class WarmUp(Protocol):
    """A device's model and training data in the setup phase. The model first holds the initial values, and the engine
    restores them afterwards.
    """

    def read(self) -> Tensors:
        """Copy the model's trainable values."""

    def train(self, *, first_epoch: int = 0, epochs: int | None = None) -> Tensors:
        """Train all tensors on all of the device's batches, with a new optimiser and the plain loss; returns {}.

        epochs: passes over the batches; None: as set in `local`. first_epoch: its number, which decides the order of
        the batches and dropout.
        """


class Mask(Part):
    """Choose the entries of a device's personal tensors that local training may change.

    `prepare`, then `warm_up`, run in the setup phase if the part `needs_setup`. `refresh` runs at the start of each
    participation; its first memory is empty if they did not run. `absorb` runs after training if the mask `watches` it.
    A memory may hold `kept/NAME` for masked tensors, bool, True where an entry of a personal tensor may move. For the
    round log it may hold `fisher/NAME`, the diagonal Fisher information used.
    """

    kind: str = "none"

    def prepare(self, scan: FisherScan, rng: torch.Generator) -> Tensors:
        """The initial memory. scan: lazy squared gradients over all of the device's data."""
        return {}

    def warm_up(self, memory: Tensors, session: WarmUp, learning_rate: float) -> Tensors:
        """Train the device's model in the setup phase, and return the new memory. learning_rate: of the steps."""
        return memory

    def refresh(self, memory: Tensors, scan: FisherScan, names: Collection[str], rng: torch.Generator) -> Tensors:
        """The new memory. scan: lazy squared gradients over the batches visible this round. names: the personal
        tensors.
        """
        return memory

    def watches(self, memory: Tensors) -> bool:
        """True if `absorb` needs the squared gradients of this round's training."""
        return False

    def absorb(self, memory: Tensors, diagonal: Tensors) -> Tensors:
        """The new memory. diagonal: mean squared per-sample gradients of the personal tensors, collected during
        training.
        """
        return memory

    def neurons(self, keep: Tensors) -> Tensors:
        """Which neurons move, bool (neurons,) by tensor, for the round log. By default neurons are rows."""
        return {name: entries.reshape(len(entries), -1).any(1) for name, entries in keep.items()}


def may_move(memory: Mapping[str, Tensor], names: Collection[str]) -> Tensors:
    """Bool tensors, True where an entry may move, for the names that a mask with this memory masks."""
    return select(under_prefix("kept", memory), names)
