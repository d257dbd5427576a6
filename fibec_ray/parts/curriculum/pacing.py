"""Pacing functions, and the base of all curricula that show a growing part of a device's data.

A pacing function gives the visible fraction of the data over the course of training.

x in [0, 1] is the progress t / (alpha T), capped at 1; beta in [0, 1] is the fraction visible at the start. Every
function rises from beta (exp, competence and geometric too) to 1, so all data are visible from round ceil(alpha T) on.
Rounds count from 0, so with alpha above (T - 1) / T that would be after the last round, T - 1. Ours: the last round
shows all data for any alpha, and so does the only round of a run with T = 1; and `final_fraction` caps h.

FibecFed's paper finds linear best; how it defines the others is not known. The forms here are the usual ones (Wu et
al., ICLR 2021; Platanios et al., NAACL 2019). A co-author's code has linear, a pacing named sqrt
that computes `square`, all data from the start, and fixed steps.
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

    Tolerates rounding in the product: .55 * 100 is above 55 in floating point, and x is still 1 in round 55.
    """
    span = full_at * rounds
    return 1.0 if round_ >= span * (1 - 1e-12) else round_ / span


def fraction_visible(pacing: str, round_: int, rounds: int, initial_fraction: float, full_at: float) -> float:
    """The visible fraction h in [0, 1] in round t; 1 in the last round."""
    if round_ >= rounds - 1:
        return 1.0
    return min(1.0, PACINGS[pacing](progress(round_, rounds, full_at), initial_fraction))


def num_visible(
    pacing: str, num_units: int, round_: int, rounds: int, initial_fraction: float, full_at: float, most: float = 1.0
) -> int:
    """Number of visible units, b_k^t = max(1, ceil(min(h, most) |B_k|)), at most |B_k|. Tolerates rounding in the
    product."""
    h = min(most, fraction_visible(pacing, round_, rounds, initial_fraction, full_at))
    return min(num_units, max(1, math.ceil(h * num_units - 1e-9)))


def softly_visible(fraction: float, num_units: int, softness: float, rng: torch.Generator) -> Tensor:
    """Draw the visible units: position j with probability sigmoid((h |B| - j) / (kappa |B|)). This rule is ours.

    Returns (units visible,) int64. Never empty: at least the easiest unit. At h = 1 all units are visible, where the
    formula would still leave out some of the hardest.
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
    """Base of curricula that order units (batches or samples) and show the first b_k^t of them in round t.

    Pacing `soft` draws units instead, easier ones with a higher probability, until h = 1 shows all. A subclass's
    `prepare` returns a memory with `order`, (units,) int64, easiest first; without it units keep the order of the
    seeded split.
    """

    pacing: Pacing = Field("linear", description="how the visible fraction grows over the rounds")
    initial_fraction: float = Field(
        0.2, ge=0, le=1, description="beta: fraction visible in the first round; at least one unit"
    )
    full_at: float = Field(
        0.8, ge=0, le=1, description="alpha: fraction of the rounds after which all is visible; 1: the last round"
    )
    final_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="the largest visible fraction; below 1 the hardest units are left out for good (pacing soft: drawn "
        "rarely; inclusive: one unit more). Ours",
    )
    softness: float = Field(
        SOFTNESS, gt=0, description="kappa of pacing soft: width of the edge, as a share of the data"
    )
    unit: Literal["batch", "sample", "sorted_batch"] = Field(
        "batch",
        description="what is ordered and shown: batch, the fixed batches; sample, single samples; sorted_batch, "
        "batches cut from the ordered samples",
    )
    shuffle: bool = Field(
        True, description="shuffle the visible batches in each local epoch; false: always in the curriculum's order"
    )
    inclusive: bool = Field(
        False, description="show one unit more than the threshold b_k^t, as in a co-author's code of FibecFed"
    )

    @model_validator(mode="after")
    def _no_setting_without_effect(self) -> Paced:
        if self.pacing != "soft" and self.softness != SOFTNESS:
            raise ValueError("softness has an effect only with pacing: soft; leave it out")
        if self.pacing == "soft" and self.inclusive:
            raise ValueError("inclusive has no effect with pacing: soft, which draws units; leave it out")
        if self.final_fraction < self.initial_fraction:
            raise ValueError(
                f"final_fraction {self.final_fraction:g} is below initial_fraction {self.initial_fraction:g}; raise "
                "final_fraction, or lower initial_fraction"
            )
        return self

    def visible(
        self, memory: Tensors, batches: Sequence[Tensor], round_: int, rounds: int, rng: torch.Generator
    ) -> list[Tensor]:
        order = memory["order"] if "order" in memory else self.as_split(batches)
        if self.unit == "sorted_batch":
            cut = order.split(max(len(rows) for rows in batches))
            return [cut[i] for i in self._chosen(len(cut), round_, rounds, rng).tolist()]
        chosen = order[self._chosen(len(order), round_, rounds, rng)]
        if self.unit == "batch" and not self.shuffle:
            return [batches[i] for i in chosen.tolist()]
        if self.unit == "batch":
            # In their original order, before the shuffle: with all visible, this equals the neutral curriculum.
            return [batches[i] for i in sorted(chosen.tolist())]
        return list(chosen.split(max(len(rows) for rows in batches)))

    def pick(self, visible: Sequence[Tensor], rng: torch.Generator) -> list[Tensor]:
        return super().pick(visible, rng) if self.shuffle else list(visible)

    def as_split(self, batches: Sequence[Tensor]) -> Tensor:
        """(units,) in the order of the seeded split."""
        return torch.arange(len(batches)) if self.unit == "batch" else torch.cat(list(batches))

    def _chosen(self, num_units: int, round_: int, rounds: int, rng: torch.Generator) -> Tensor:
        """(units visible,) int64 positions in the order."""
        at = round_, rounds, self.initial_fraction, self.full_at
        if self.pacing == "soft":
            fraction = min(self.final_fraction, fraction_visible("soft", *at))
            return softly_visible(fraction, num_units, self.softness, rng)
        count = num_visible(self.pacing, num_units, *at, self.final_fraction)
        return torch.arange(min(num_units, count + self.inclusive))
