"""The base class of all curricula; used as it is, it shows all data in seeded random order."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.parts.part import Part
from fibec_ray.tensors import Tensors


class Curriculum(Part):
    """Choose the batches a device trains on in a round, and their order.

    A device's samples are split once into fixed batches, by a seed that does not depend on the method, so methods are
    compared on the same batches. `prepare` runs in the setup phase if the part `needs_setup`, and at the start of each
    participation that is `due`. `pick` runs once per local epoch. A memory may hold `sample_difficulty` (n,) and
    `batch_difficulty` (batches,) for the round log.
    """

    kind: str = "all"

    @property
    def pools_words(self) -> bool:
        """True if devices add up their token counts in the setup phase. The bytes of this are counted."""
        return False

    def due(self, memory: Tensors, round_: int) -> bool:
        """True if a device needs a new memory before it trains in this round."""
        return False

    def prepare(self, scan: FisherScan, rng: torch.Generator, round_: int) -> Tensors:
        """Compute the memory that `visible` uses. scan: lazy squared gradients over the fixed batches. round_: -1
        at init.
        """
        return {}

    def visible(
        self, memory: Tensors, batches: Sequence[Tensor], round_: int, rounds: int, rng: torch.Generator
    ) -> list[Tensor]:
        """The batches that the device may use in this round, each (B,) int64 rows of the shard; never empty."""
        return list(batches)

    def max_length(self, round_: int, rounds: int, full: int) -> int | None:
        """Most tokens per sample in this round's training steps; None: no limit.

        full: the limit of the run (`data.max_length`). Evaluation, and what other parts measure before or after
        training, use whole samples.
        """
        return None

    def pick(self, visible: Sequence[Tensor], rng: torch.Generator) -> list[Tensor]:
        """The batches of one local epoch, in order. By default all visible ones, shuffled."""
        return [visible[i] for i in torch.randperm(len(visible), generator=rng).tolist()]
