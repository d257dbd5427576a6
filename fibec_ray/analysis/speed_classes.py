"""Accuracy, work and costs of a run by the speed class of its devices: do slow devices learn less?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl

from fibec_ray.analysis.curves import ROUNDS
from fibec_ray.analysis.figure import Curve, Series
from fibec_ray.analysis.tables import FIRST_ROUND, RunTables

ORDER = ("slow", "medium", "fast", "phone", "edge", "silo")
"""Known classes come in this order, then others by name."""


@dataclass(frozen=True)
class ClassResult:
    """One class at the last evaluation, and its work over the run."""

    speed_class: str
    num_devices: int
    accuracy: float | None
    """of the devices' own models on their own test shards, pooled; None in a regression"""
    device_rounds: int
    """finished device-rounds"""
    median_s: float | None
    """simulated s of a device-round, median; None if no device of the class took part"""
    energy_j: float
    """simulated J of all its device-rounds"""


def class_results(tables: RunTables) -> list[ClassResult]:
    """One entry per class; empty where devices have none."""
    last = pl.col("round") == pl.col("round").max()
    devices = tables.evaluations.filter(last & pl.col("speed_class").is_not_null())
    classes = dict(devices.select("device", "speed_class").iter_rows())
    counts = dict(devices.group_by("speed_class").len().iter_rows())
    scores = {name: accuracy for _, name, accuracy in _pooled(devices)}
    work = _work(tables, classes)
    return [
        ClassResult(name, counts[name], scores.get(name), *work.get(name, (0, None, 0.0)))
        for name in sorted(counts, key=_rank)
    ]


def class_accuracy(tables: RunTables) -> Mapping[str, float]:
    """Accuracy by class at the last evaluation, for classes that have one."""
    return {each.speed_class: each.accuracy for each in class_results(tables) if each.accuracy is not None}


def class_curve(tables: RunTables) -> Curve:
    """Accuracy of each class over the rounds."""
    found: dict[str, list[tuple[float, float]]] = {}
    for round_, name, accuracy in _pooled(tables.evaluations.filter(pl.col("speed_class").is_not_null())):
        found.setdefault(name, []).append((round_ + FIRST_ROUND, accuracy))
    series = tuple(Series(name, tuple(found[name])) for name in sorted(found, key=_rank))
    caption = "Accuracy of the devices' own models on their own test shards, pooled over the devices of a speed class."
    return Curve(
        "accuracy_by_class", "Accuracy by speed class", caption, ROUNDS, "accuracy (fraction correct)", series,
        whole_x=True, fraction=True,
    )  # fmt: skip


def _pooled(evaluations: pl.DataFrame) -> list[tuple[int, str, float]]:
    """(round, class, accuracy over all test samples of the class), in order of rounds."""
    known = evaluations.filter(pl.col("accuracy").is_not_null() & (pl.col("num_samples") > 0))
    weight = pl.col("num_samples")
    mean = (pl.col("accuracy") * weight).sum() / weight.sum()
    return list(known.group_by("round", "speed_class").agg(mean).sort("round", "speed_class").iter_rows())


def _work(tables: RunTables, classes: Mapping[int, str]) -> dict[str, tuple[int, float | None, float]]:
    """By class: device-rounds of training, their median simulated seconds, and their joules."""
    rows = tables.devices.filter(pl.col("round") >= 0)
    named = rows.with_columns(pl.col("device").replace_strict(classes, default=None, return_dtype=pl.String).alias("c"))
    how = pl.len(), pl.col("sim_time_s").median().alias("median"), pl.col("energy_j").sum().alias("energy")
    found = named.filter(pl.col("c").is_not_null()).group_by("c").agg(*how).iter_rows()
    return {name: (count, median, energy) for name, count, median, energy in found}


def _rank(name: str) -> tuple[int, str]:
    return (ORDER.index(name), "") if name in ORDER else (len(ORDER), name)
