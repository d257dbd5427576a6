"""The three tables of a run's log, as numbers; what curves and the report are made from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from fibec_ray.roundlog.reader import read_devices, read_layers, read_rounds

Point = tuple[float, float]


@dataclass(frozen=True)
class RunTables:
    rounds: pa.Table
    devices: pa.Table
    layers: pa.Table

    @staticmethod
    def read(run_dir: Path) -> RunTables:
        return RunTables(read_rounds(run_dir), read_devices(run_dir), read_layers(run_dir))

    def column(self, name: str) -> list[Any]:
        """A column of the rounds table; None where the log has null."""
        values: list[Any] = self.rounds.column(name).to_pylist()
        return values

    def rounds_done(self) -> int:
        """How many rounds are in the log, the initialisation phase not counted."""
        return int(max(self.column("round"))) + 1

    def points(self, x: str, y: str) -> list[Point]:
        """(x, y) for each round where both are known. x = 'round' counts rounds completed: 0 after initialisation."""
        shift = 1 if x == "round" else 0
        pairs = zip(self.column(x), self.column(y), strict=True)
        return [(left + shift, right) for left, right in pairs if left is not None and right is not None]


@dataclass(frozen=True)
class Layer:
    """What the log last said about one layer; None where it says nothing."""

    layer: int
    shared: bool
    sensitivity: float | None
    fisher_mass: float | None
    kept_neurons: float | None


def latest_layers(tables: RunTables) -> list[Layer]:
    """One entry per layer, each value from the last round that knows it."""
    latest: dict[int, dict[str, Any]] = {}
    for row in tables.layers.to_pylist():  # in round order
        known = {name: value for name, value in row.items() if value is not None}
        latest[row["layer"]] = latest.get(row["layer"], {}) | known
    return [_layer(latest[layer]) for layer in sorted(latest)]


def cohort_means(tables: RunTables, column: str) -> list[Point]:
    """(rounds completed, mean of a devices column weighted by samples seen), for each round that has it."""
    sums: dict[int, tuple[float, float]] = {}
    names = ("round", "num_samples_seen", column)
    for round_, weight, value in zip(*(tables.devices.column(name).to_pylist() for name in names), strict=True):
        if value is not None and weight > 0:
            total, weights = sums.get(round_, (0.0, 0.0))
            sums[round_] = (total + weight * value, weights + weight)
    return [(round_ + 1, total / weights) for round_, (total, weights) in sorted(sums.items())]


def any_finite(points: Sequence[Point]) -> bool:
    return any(math.isfinite(y) for _, y in points)


def _layer(row: dict[str, Any]) -> Layer:
    return Layer(
        layer=row["layer"],
        shared=row["shared"],
        sensitivity=row.get("sensitivity"),
        fisher_mass=row.get("fisher_mass"),
        kept_neurons=row.get("kept_neurons"),
    )
