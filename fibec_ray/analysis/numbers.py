"""The numbers of one run that comparisons use: scores, costs, and the cost to reach a target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import polars as pl

from fibec_ray.analysis.fairness import Spread, last_spread
from fibec_ray.analysis.log import RunLog
from fibec_ray.analysis.speed_classes import class_accuracy
from fibec_ray.analysis.tables import RunTables
from fibec_ray.errors import round_number
from fibec_ray.roundlog.scores import anchors_in, score_column

Model = Literal["personal", "global"]
Pick = Literal["last", "best"]
"""The score of a run: the mean of its last evaluations, or its highest one."""


@dataclass(frozen=True)
class Evaluated:
    """An evaluation: its scores, and the costs since the start of the run."""

    rounds: int
    """the round after which it was made; 0 is before training"""
    sim_time_s: float
    training_time_s: float
    """simulated s, without the initialisation phase"""
    num_bytes: float
    num_samples: float
    energy_j: float | None
    """simulated J of all devices; None in logs of earlier releases"""
    personal: float | None
    shared: float | None

    def score(self, model: Model) -> float | None:
        """The score of the personal or the global model."""
        return self.personal if model == "personal" else self.shared


@dataclass(frozen=True)
class RunNumbers:
    """Scores and costs of one run. Scores are None where the log has none."""

    personal: float | None
    """score of the personal models, mean of the last evaluations: accuracy, or what the task has instead"""
    shared: float | None
    """score of the global model"""
    num_bytes: float
    num_samples: float
    flops: float
    """of all devices, setup included"""
    sim_time_s: float
    training_time_s: float
    """simulated s, without the initialisation phase"""
    wall_time_s: float
    energy_j: float | None
    """simulated J of all devices; None in logs of earlier releases"""
    dropped_bytes: float | None
    """predicted for devices whose work did not count; not in num_bytes; None in logs of earlier releases"""
    dropped_energy_j: float | None
    """the same in J; not in energy_j"""
    score: str
    """accuracy, or the task's own metric"""
    anchors: Mapping[str, float]
    evaluated: tuple[Evaluated, ...]
    """in round order"""
    spread: Spread | None
    """of the devices' own scores at the last evaluation"""
    by_class: Mapping[str, float]
    """accuracy by speed class at the last evaluation; empty where devices have no classes"""

    def picked(self, model: Model, pick: Pick) -> float | None:
        """The final (last) or the best score of the personal or the global model."""
        return self.final(model) if pick == "last" else self.best(model)

    def final(self, model: Model) -> float | None:
        """The final score of the personal or the global model."""
        return self.personal if model == "personal" else self.shared

    def best(self, model: Model) -> float | None:
        """The highest score of the personal or the global model; None without an evaluation."""
        known = [score for each in self.evaluated if (score := each.score(model)) is not None]
        return max((score for score in known if math.isfinite(score)), default=None)

    def reached(self, model: Model, target: float) -> Evaluated | None:
        """The first evaluation that reaches this score; None if none does."""
        known = ((each, each.score(model)) for each in self.evaluated)
        return next((each for each, score in known if score is not None and score >= target), None)


def numbers_of(log: RunLog, recent: int) -> RunNumbers:
    """Read one run. recent: number of last evaluations that the final score averages."""
    tables, metric = RunTables.read(log), log.summary.get("metric")
    column = score_column(metric)

    def last(name: str) -> float:
        return float(tables.column(name)[-1])

    def total(name: str) -> float | None:
        known = [value for value in tables.column(name) if value is not None]
        return math.fsum(known) if len(known) == len(tables.rounds) else None

    def score(model: str) -> float | None:
        known = [value for _, value in tables.points("round", f"{model}_{column}")]
        return fmean(known[-recent:]) if known else None

    return RunNumbers(
        personal=score("personal"),
        shared=score("global"),
        score="accuracy" if column == "accuracy" else str(metric),
        num_bytes=last("bytes_total"),
        num_samples=last("num_samples_total"),
        flops=math.fsum(tables.column("flops")),
        sim_time_s=last("sim_time_s"),
        training_time_s=last("sim_time_s") - setup_time(tables),
        wall_time_s=last("wall_time_s"),
        energy_j=tables.column("energy_total_j")[-1],
        dropped_bytes=total("dropped_bytes"),
        dropped_energy_j=total("dropped_energy_j"),
        anchors=anchors_in(column, log.anchors()),
        evaluated=_evaluated(tables, column),
        spread=last_spread(tables),
        by_class=class_accuracy(tables),
    )


def setup_time(tables: RunTables) -> float:
    """Return the simulated s of the initialisation phase; 0 for a method without one."""
    rows = tables.rounds.filter(pl.col("round") < 0).get_column("sim_time_s")
    return float(rows[0]) if len(rows) else 0.0


def _evaluated(tables: RunTables, column: str) -> tuple[Evaluated, ...]:
    setup = setup_time(tables)
    costs = ("round", "sim_time_s", "bytes_total", "num_samples_total", "energy_total_j")
    rows = tables.rounds.select(*costs, f"personal_{column}", f"global_{column}").iter_rows()
    return tuple(
        Evaluated(round_number(round_), time, time - setup, num_bytes, samples, energy, personal, shared)
        for round_, time, num_bytes, samples, energy, personal, shared in rows
        if personal is not None or shared is not None
    )
