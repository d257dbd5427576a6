"""Curricula that show a growing part of a device's data; the base of every curriculum but the neutral one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fibec_ray.parts.curriculum.base import Curriculum
from fibec_ray.parts.curriculum.pacing import fraction_visible, num_visible, softly_visible
from fibec_ray.tensors import Tensors

Pacing = Literal["linear", "square", "sqrt", "exp", "competence", "geometric", "step", "log", "soft"]
SOFTNESS = 0.1


class Paced(Curriculum):
    """Units (fixed batches, or single samples) stand in an order; round t shows the first b_k^t of them.

    Pacing `soft` draws instead, the easier the likelier, until h = 1 shows all. A subclass's `prepare` returns a memory
    with `order`, (units,) int64, easiest first; without one the units stand as the seeded split left them.
    """

    pacing: Pacing = "linear"
    initial_fraction: float = Field(0.2, ge=0, le=1, description="beta: fraction visible in round 0; at least one unit")
    full_at: float = Field(
        0.8, ge=0, le=1, description="alpha: fraction of the rounds after which all is visible; 1: in the last"
    )
    softness: float = Field(SOFTNESS, gt=0, description="kappa of pacing soft: width of the edge, in units of the data")
    unit: Literal["batch", "sample"] = "batch"

    @model_validator(mode="after")
    def _softness_needs_soft(self) -> Paced:
        if self.pacing != "soft" and self.softness != SOFTNESS:
            raise ValueError("softness has an effect only with pacing: soft; leave it out")
        return self

    def visible(
        self, memory: Tensors, batches: Sequence[Tensor], round_: int, rounds: int, rng: torch.Generator
    ) -> list[Tensor]:
        order = memory["order"] if "order" in memory else self.as_split(batches)
        chosen = order[self._chosen(len(order), round_, rounds, rng)]
        if self.unit == "batch":
            # In their original order, which a shuffle follows: with all visible, this is the neutral curriculum.
            return [batches[i] for i in sorted(chosen.tolist())]
        return list(chosen.split(max(len(rows) for rows in batches)))

    def as_split(self, batches: Sequence[Tensor]) -> Tensor:
        """(units,) in the order of the seeded split: no order at all."""
        return torch.arange(len(batches)) if self.unit == "batch" else torch.cat(list(batches))

    def _chosen(self, num_units: int, round_: int, rounds: int, rng: torch.Generator) -> Tensor:
        """(units visible,) int64 positions in the order."""
        if self.pacing == "soft":
            fraction = fraction_visible("soft", round_, rounds, self.initial_fraction, self.full_at)
            return softly_visible(fraction, num_units, self.softness, rng)
        return torch.arange(num_visible(self.pacing, num_units, round_, rounds, self.initial_fraction, self.full_at))
