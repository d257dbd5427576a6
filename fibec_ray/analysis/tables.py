"""The tables of a run's log in memory, as numbers for figures, scores and comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from fibec_ray.analysis.log import RunLog, open_run
from fibec_ray.analysis.whole import KEYS, refuse_damage
from fibec_ray.roundlog.scores import personal_equals_global

Point = tuple[float, float]

FIRST_ROUND = 1
"""What figures, tables and the console call the round that the log numbers 0. Their round 0 is before training: -1 in
the log."""


@dataclass(frozen=True)
class RunTables:
    """Rows in order of round, then device or layer."""

    rounds: pl.DataFrame
    devices: pl.DataFrame
    layers: pl.DataFrame
    evaluations: pl.DataFrame

    @staticmethod
    def read(run: Path | RunLog) -> RunTables:
        """Read a log into memory. Raises RunDirError for a damaged log."""
        log = run if isinstance(run, RunLog) else open_run(run)
        tables = {name: log.frame(name).sort(keys) for name, keys in KEYS.items()}
        refuse_damage(log, tables)
        return RunTables(**tables)

    def column(self, name: str) -> list[Any]:
        """A column of the rounds table; None where the log has null."""
        return self.rounds.get_column(name).to_list()

    def has(self, name: str) -> bool:
        """True if the rounds table has this column with some value in it."""
        return name in self.rounds.columns and self.rounds.get_column(name).count() > 0

    def named(self, column: str) -> list[dict[str, float]]:
        """A column of figures by name, such as `global_metrics`; a round without figures has none."""
        rows = [row or {} for row in self.column(column)]  # older releases of polars read maps as lists of structs
        return [row if isinstance(row, dict) else {each["key"]: each["value"] for each in row} for row in rows]

    def rounds_done(self) -> int:
        """How many training rounds the log has."""
        return int(max(self.column("round"))) + FIRST_ROUND

    def personal_equals_global(self) -> bool:
        """Whether devices have no models of their own: every personal score equals the global one of its round."""
        return personal_equals_global(self.rounds.iter_rows(named=True))

    def points(self, x: str, y: str) -> list[Point]:
        """(x, y) for each round where both are known. x = 'round' counts as figures do: 0 is before training."""
        shift = FIRST_ROUND if x == "round" else 0
        pairs = zip(self.column(x), self.column(y), strict=True)
        return [(left + shift, right) for left, right in pairs if left is not None and right is not None]


@dataclass(frozen=True)
class Layer:
    """Newest known values of one layer; None where the log has none."""

    layer: int
    shared: bool
    sensitivity: float | None
    fisher_mass: float | None
    kept_neurons: float | None


def latest_layers(tables: RunTables) -> list[Layer]:
    """One entry per layer, each value from the last round that has it."""
    names = [name for name in Layer.__dataclass_fields__ if name != "layer"]
    last = [pl.col(name).drop_nulls().last().alias(name) for name in names]
    rows = tables.layers.group_by("layer").agg(last).sort("layer").select("layer", *names)
    return [Layer(*row) for row in rows.iter_rows()]


def cohort_means(tables: RunTables, column: str) -> list[Point]:
    """(round, mean of a devices column weighted by samples seen), for each round that has it; rounds from 1."""
    weight = pl.col("num_samples_seen")
    known = tables.devices.filter(pl.col(column).is_not_null() & (weight > 0))
    mean = (pl.col(column) * weight).sum() / weight.sum()
    rows = known.group_by("round").agg(mean.alias("mean")).sort("round")
    return [(round_ + FIRST_ROUND, value) for round_, value in rows.iter_rows()]


def any_finite(points: Sequence[Point]) -> bool:
    """True if any y is a finite number."""
    return any(math.isfinite(y) for _, y in points)
