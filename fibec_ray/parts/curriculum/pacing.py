"""Curricula that show a growing part of a device's data; the base of every curriculum but the neutral one.

Pacing functions say which fraction of the data a curriculum shows as training goes on.

x in [0, 1] is the progress t / (alpha T), capped at 1; beta in [0, 1] the fraction visible at the start. Every function
rises from beta (exp, competence, geometric too) to 1, so that all data are visible from round ceil(alpha T) on. Rounds
count from 0: with alpha above (T - 1) / T that would be after the last round, T - 1. Ours: the last round shows all
data whatever alpha is, and so does the one round of a run with T = 1.

Which of the functions FibecFed's paper defines is not known beyond linear being its best; the forms are the usual ones
(Wu et al., ICLR 2021; Platanios et al., NAACL 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from fibec_ray.parts.curriculum.base import Curriculum
from fibec_ray.tensors import Tensors

EXP_RATE = 10.0
"""c of the exponential pacing: 1 - 1/e of the growth happens in the last tenth."""

PACINGS: dict[str, Callable[[float, float], float]] = {
    "linear": lambda x, beta: beta + (1 - beta) * x,
    "square": lambda x, beta: beta + (1 - beta) * x**2,
    "sqrt": lambda x, beta: beta + (1 - beta) * math.sqrt(x),
    "exp": lambda x, beta: beta + (1 - beta) * math.expm1(EXP_RATE * x) / math.expm1(EXP_RATE),
    "competence": lambda x, beta: math.sqrt(beta**2 + (1 - beta**2) * x),
    "geometric": lambda x, beta: beta ** (1 - x),
    "step": lambda x, beta: 1.0 if x >= 1 else beta,
    "log": lambda x, beta: beta + (1 - beta) * (1 + math.log(x + math.exp(-EXP_RATE)) / EXP_RATE),
    "soft": lambda x, beta: beta + (1 - beta) * x,
}


def progress(round_: int, rounds: int, full_at: float) -> float:
    """x = min(1, t / (alpha T)), with t the global round from 0 and alpha = `full_at`; 1 if alpha = 0.

    Guarded against float noise in the product: .55 * 100 is above 55, and x is 1 in round 55 all the same.
    """
    span = full_at * rounds
    return 1.0 if round_ >= span * (1 - 1e-12) else round_ / span


def fraction_visible(pacing: str, round_: int, rounds: int, initial_fraction: float, full_at: float) -> float:
    """h in [0, 1] of round t; 1 in the last round."""
    if round_ >= rounds - 1:
        return 1.0
    return min(1.0, PACINGS[pacing](progress(round_, rounds, full_at), initial_fraction))


def num_visible(pacing: str, num_units: int, round_: int, rounds: int, initial_fraction: float, full_at: float) -> int:
    """b_k^t = max(1, ceil(h |B_k|)), guarded against float noise in the product; never more than |B_k|."""
    h = fraction_visible(pacing, round_, rounds, initial_fraction, full_at)
    return min(num_units, max(1, math.ceil(h * num_units - 1e-9)))


def softly_visible(fraction: float, num_units: int, softness: float, rng: torch.Generator) -> Tensor:
    """(units visible,) int64: position j of the order with probability sigmoid((h |B| - j) / (kappa |B|)), ours.

    Never none (then the easiest), and all once h = 1, where the formula would still leave some of the hardest out.
    """
    positions = torch.arange(num_units)
    if fraction >= 1:
        return positions
    chances = torch.sigmoid((fraction * num_units - positions) / (softness * num_units))
    drawn = positions[torch.rand(num_units, generator=rng) < chances]
    return drawn if len(drawn) else positions[:1]


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
