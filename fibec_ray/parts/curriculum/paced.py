"""Curricula that show a growing prefix of a fixed order; the base of the Fisher and the random one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from fibec_ray.fisher import FisherScan
from fibec_ray.parts.curriculum.base import Curriculum
from fibec_ray.parts.curriculum.pacing import num_visible
from fibec_ray.tensors import Tensors

Pacing = Literal["linear", "square", "sqrt", "exp", "competence", "geometric", "step", "log"]


class Paced(Curriculum):
    """Units (fixed batches, or single samples) are put in order once; round t shows the first b_k^t of them.

    A subclass's `prepare` returns a memory with `order`, (units,) int64, easiest first.
    """

    pacing: Pacing = "linear"
    initial_fraction: float = Field(0.2, ge=0, le=1, description="beta: fraction visible in round 0; at least one unit")
    full_at: float = Field(0.8, ge=0, le=1, description="alpha: fraction of the rounds after which all is visible")
    unit: Literal["batch", "sample"] = "batch"
    score_at: Literal["init", "first_participation"] = Field(
        "init",
        description="on which model the order is made: init, of all devices before round 0 (as described); "
        "first_participation, on the model received then, which spreads the cost and skips devices never drawn",
    )

    @property
    def opens(self) -> bool:
        return self.score_at == "init"

    def num_units(self, scan: FisherScan) -> int:
        return len(scan.batches) if self.unit == "batch" else scan.shard.num_samples

    def visible(self, memory: Tensors, batches: Sequence[Tensor], round_: int, rounds: int) -> list[Tensor]:
        order = memory["order"]
        count = num_visible(self.pacing, len(order), round_, rounds, self.initial_fraction, self.full_at)
        if self.unit == "batch":
            # In their original order, which a shuffle follows: with all visible, this is the neutral curriculum.
            return [batches[i] for i in sorted(order[:count].tolist())]
        return list(order[:count].split(max(len(rows) for rows in batches)))
