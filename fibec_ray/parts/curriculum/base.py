"""The neutral curriculum: all data, every round, in seeded order. The contract of all curricula."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.parts.part import Part
from fibec_ray.tensors import Tensors


class Curriculum(Part):
    """Which batches a device trains on in a round, and in which order.

    A device's samples are split into fixed batches once, by a seed that does not depend on the method, so methods are
    compared on the same batches. `prepare` runs in the setup phase if the part `needs_setup`, and at the start of
    each participation for which it is `due`. `pick` runs once per local epoch.
    A memory may hold `sample_difficulty` (n,) and `batch_difficulty` (batches,), which the round log then reports.
    """

    kind: str = "all"

    def due(self, memory: Tensors, round_: int) -> bool:
        """True if a device that takes part in this round needs a new memory first."""
        return False

    def prepare(self, scan: FisherScan, rng: torch.Generator, round_: int) -> Tensors:
        """The memory that `visible` needs. scan: squared gradients over the fixed batches, lazy. round_: -1 at init."""
        return {}

    def visible(
        self, memory: Tensors, batches: Sequence[Tensor], round_: int, rounds: int, rng: torch.Generator
    ) -> list[Tensor]:
        """The batches that the device may see in this round, each a (B,) int64 tensor of rows; never empty."""
        return list(batches)

    def max_length(self, round_: int, rounds: int, full: int) -> int | None:
        """Tokens to which a device cuts its samples for the steps of this round; None: as they are.

        full: the most that a sample of the run may have (`data.max_length`). Evaluation, and whatever other parts
        measure before or after training, see whole samples.
        """
        return None

    def pick(self, visible: Sequence[Tensor], rng: torch.Generator) -> list[Tensor]:
        """The batches of one local epoch, in order. As it stands: all visible ones, shuffled."""
        return [visible[i] for i in torch.randperm(len(visible), generator=rng).tolist()]
