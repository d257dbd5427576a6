"""How a run's personal accuracy spreads over its devices."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev

import polars as pl

from fibec_ray.analysis.tables import RunTables

LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
"""quantiles of the fan"""


@dataclass(frozen=True)
class Spread:
    """Statistics of accuracy over the devices that have test samples; each device counts once."""

    num_devices: int
    mean: float
    worst_decile: float
    """mean over the tenth of the devices (rounded up) that score lowest"""
    median: float
    best_decile: float
    deviation: float
    """standard deviation over devices"""

    @staticmethod
    def of(scores: Sequence[float]) -> Spread | None:
        """The spread of some scores; None without scores."""
        if not scores:
            return None
        ranked, tenth = sorted(scores), math.ceil(len(scores) / 10)
        worst, best = fmean(ranked[:tenth]), fmean(ranked[-tenth:])
        return Spread(len(ranked), fmean(ranked), worst, median(ranked), best, pstdev(ranked))


def last_scores(tables: RunTables) -> list[tuple[int, float, int]]:
    """(device, accuracy, test samples) at the last evaluation, of devices that have test samples."""
    known = _known(tables)
    last = known.filter(pl.col("round") == pl.col("round").max())
    return list(last.select("device", "accuracy", "num_samples").iter_rows())


def last_spread(tables: RunTables) -> Spread | None:
    """The spread at the last evaluation; None where the log has no accuracy of single devices."""
    return Spread.of([accuracy for _, accuracy, _ in last_scores(tables)])


def fan(tables: RunTables) -> list[tuple[int, ...] | tuple[float, ...]]:
    """(round from 1, mean of the worst decile, quantiles at LEVELS) for each evaluated round."""
    ranked = _known(tables).sort("round", "accuracy")
    tenth = (pl.len() / 10).ceil().cast(pl.Int64)
    worst = pl.col("accuracy").head(tenth).mean().alias("worst")
    quantiles = [pl.col("accuracy").quantile(level, "linear").alias(f"q{level}") for level in LEVELS]
    rows = ranked.group_by("round", maintain_order=True).agg(worst, *quantiles)
    return [(row[0] + 1, *row[1:]) for row in rows.iter_rows()]


def _known(tables: RunTables) -> pl.DataFrame:
    return tables.evaluations.filter(pl.col("accuracy").is_not_null())
