"""What each variant pays to reach a target score, compared with the reference.

A run reaches a target at its first evaluation with at least that score. Its cost is what the log has at the end of that
round. A run that never reaches the target is counted, and left out of the means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fibec_ray.analysis.comparison import Comparison, Line
from fibec_ray.analysis.numbers import Evaluated, Model
from fibec_ray.analysis.statistics import Mean, geometric_mean

SHARE = 0.95
"""the default target, as a share of the reference's best score"""
COSTS = ("rounds", "sim_time_s", "training_time_s", "num_bytes", "num_samples", "energy_j")
"""Fields of Evaluated."""


@dataclass(frozen=True)
class Reached:
    """One variant and one target."""

    variant: str
    num_seeds: int
    num_reached: int
    """seeds that reached the target"""
    costs: Mapping[str, Mean | None]
    """by field of Evaluated, over the seeds that reached the target"""
    speed_up: Mapping[str, float | None]
    """the reference's cost divided by this variant's: geometric mean over the seeds in which both reached it"""
    num_pairs: int
    """number of those seeds"""


def default_target(comparison: Comparison, model: Model) -> tuple[float, ...]:
    """SHARE of the reference's mean best score, rounded down to two digits; none where it has no positive score."""
    best = comparison.line(comparison.reference).mean(lambda run: run.best(model))
    return () if best is None or best <= 0 else (math.floor(100 * SHARE * best) / 100,)


def target_rows(comparison: Comparison, model: Model, target: float) -> list[Reached]:
    """What each variant spent until it reached the target score."""
    reference = _arrivals(comparison.line(comparison.reference), model, target)
    return [_reached(line, _arrivals(line, model, target), reference) for line in comparison.lines]


def _arrivals(line: Line, model: Model, target: float) -> dict[int, Evaluated]:
    """By seed, for the seeds that reached the target."""
    found = {seed: run.reached(model, target) for seed, run in line.runs.items()}
    return {seed: arrival for seed, arrival in found.items() if arrival is not None}


def _reached(line: Line, own: Mapping[int, Evaluated], reference: Mapping[int, Evaluated]) -> Reached:
    common = sorted(own.keys() & reference.keys())
    return Reached(
        variant=line.variant,
        num_seeds=line.num_seeds,
        num_reached=len(own),
        costs={cost: _mean([getattr(arrival, cost) for arrival in own.values()]) for cost in COSTS},
        speed_up={cost: _ratio([(reference[seed], own[seed]) for seed in common], cost) for cost in COSTS},
        num_pairs=len(common),
    )


def _mean(costs: list[float | None]) -> Mean | None:
    """None where a run does not know the cost."""
    known = [cost for cost in costs if cost is not None]
    return Mean.of(known) if len(known) == len(costs) else None


def _ratio(pairs: list[tuple[Evaluated, Evaluated]], cost: str) -> float | None:
    """None where a cost is unknown, and where it is 0, because the ratio would be infinite."""
    costs = [(float(getattr(theirs, cost) or 0), float(getattr(own, cost) or 0)) for theirs, own in pairs]
    return geometric_mean([theirs / own for theirs, own in costs]) if all(min(pair) > 0 for pair in costs) else None
