"""The neutral mask: every trainable entry moves. The contract of all masks."""

from __future__ import annotations

from collections.abc import Collection

from fibec_ray.fisher import FisherScan
from fibec_ray.parts.part import Part
from fibec_ray.tensors import Tensors


class Mask(Part):
    """Which entries of a device's personal tensors its local update may change.

    `prepare` runs in the initialisation phase if the part `opens`; `refresh` at the start of each participation, with
    an empty memory at the first one if `prepare` did not run.
    """

    kind: str = "none"

    @property
    def needs_personal(self) -> bool:
        """True if the mask has no effect unless some tensors are personal."""
        return False

    def prepare(self, scan: FisherScan) -> Tensors:
        """The memory at the start, from squared gradients over all of the device's data (lazy)."""
        return {}

    def refresh(self, memory: Tensors, scan: FisherScan, names: Collection[str]) -> Tensors:
        """The new memory. scan: over the batches visible this round (lazy). names: the personal tensors."""
        return memory

    def keep(self, memory: Tensors, names: Collection[str]) -> Tensors:
        """Bool tensors, True where an entry may move, for the tensors that are masked at all."""
        return {}

    def fisher(self, memory: Tensors) -> Tensors:
        """The diagonal Fisher information that the mask is based on, for the round log."""
        return {}
