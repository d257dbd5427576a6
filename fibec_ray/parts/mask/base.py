"""The neutral mask: every trainable entry moves. The contract of all masks."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.parts.part import Part
from fibec_ray.tensors import Tensors, select, under_prefix


class Mask(Part):
    """Which entries of a device's personal tensors its local update may change.

    `prepare` runs in the setup phase if the part `needs_setup`; `refresh` at the start of each participation, with
    an empty memory at the first one if `prepare` did not run; `absorb` after the training of a participation that it
    `watches`.
    A memory may hold `kept/NAME`, bool, True where an entry of a personal tensor may move, for the tensors that are
    masked at all, and `fisher/NAME`, the diagonal Fisher information that the mask is based on, for the round log.
    """

    kind: str = "none"

    def prepare(self, scan: FisherScan, rng: torch.Generator) -> Tensors:
        """The memory at the start, from squared gradients over all of the device's data (lazy)."""
        return {}

    def refresh(self, memory: Tensors, scan: FisherScan, names: Collection[str], rng: torch.Generator) -> Tensors:
        """The new memory. scan: over the batches visible this round (lazy). names: the personal tensors."""
        return memory

    def watches(self, memory: Tensors) -> bool:
        """True if `absorb` wants the squared gradients of this participation's training."""
        return False

    def absorb(self, memory: Tensors, diagonal: Tensors) -> Tensors:
        """The new memory. diagonal: mean squared per-sample gradients of the personal tensors, as training met them."""
        return memory

    def neurons(self, keep: Tensors) -> Tensors:
        """Bool (neurons,) by tensor, for the round log: which neurons move. As it stands, neurons are rows."""
        return {name: entries.reshape(len(entries), -1).any(1) for name, entries in keep.items()}


def may_move(memory: Mapping[str, Tensor], names: Collection[str]) -> Tensors:
    """Bool tensors, True where an entry may move, for those of the names that a mask with this memory masks."""
    return select(under_prefix("kept", memory), names)
