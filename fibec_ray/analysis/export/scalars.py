"""What other tools get from a run: its settings, and every number of `rounds`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fibec_ray.analysis.log import open_run
from fibec_ray.errors import round_number

GROUPS = {
    "accuracy": ("global_accuracy", "personal_accuracy", "personal_accuracy_trained"),
    "metric": ("global_metric", "personal_metric"),
    "loss": ("train_loss", "global_loss", "personal_loss"),
    "bytes": ("bytes_up", "bytes_down", "bytes_total"),
    "time": ("sim_time_s", "wall_time_s"),
}
"""How tools that group curves by the part before '/' show them; the other columns are under 'round'."""


@dataclass(frozen=True)
class Step:
    """One round: 0 is before training, then 1, 2 ..."""

    round: int
    wall_time_s: float
    values: dict[str, float]
    """by name, such as 'accuracy/global_accuracy'; without values that the round does not have"""


@dataclass(frozen=True)
class Curves:
    """A run's scalars by step, and its settings, for other tools."""

    name: str
    run_dir: Path
    settings: dict[str, Any]
    """the resolved experiment, flat: {'local.batch_size': 8}"""
    steps: list[Step]


def curves_of(run_dir: Path) -> Curves:
    """Raises RunDirError for a folder that is not a run directory."""
    log = open_run(run_dir)
    rows = log.frame("rounds").iter_rows(named=True)
    steps = [Step(round_number(row["round"]), row["wall_time_s"], dict(_values(row))) for row in rows]
    return Curves(str(log.config.get("name", run_dir.name)), run_dir.resolve(), dict(_flat(log.config)), steps)


def _values(row: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for column, value in row.items():
        if column != "round" and isinstance(value, int | float) and math.isfinite(value):
            group = next((group for group, columns in GROUPS.items() if column in columns), "round")
            yield f"{group}/{column}", float(value)


def _flat(value: dict[str, Any], at: str = "") -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield from _flat(inner, f"{at}{key}.")
        else:
            yield f"{at}{key}", inner
