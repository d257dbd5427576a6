"""Figures about single devices: personal accuracy, shard sizes, durations."""

from __future__ import annotations

from collections import Counter

import polars as pl

from fibec_ray.analysis.curves import ROUNDS
from fibec_ray.analysis.fairness import fan, last_scores
from fibec_ray.analysis.figure import Curve, Series
from fibec_ray.analysis.tables import RunTables

_BINS = 20


def spread_curves(tables: RunTables) -> list[Curve]:
    """Personal accuracy as a distribution: by round, at the end, and by size of shard."""
    return [_fan(tables), _histogram(tables), _by_shard(tables)]


def shard_sizes(tables: RunTables) -> Curve:
    """Number of training samples of each device, largest first."""
    sizes = sorted(_shards(tables).values(), reverse=True)
    series = (Series("devices, largest first", tuple(enumerate(sizes, start=1))),) if sizes else ()
    caption = "Training samples of each device, in order of size."
    return Curve("shard_sizes", "Shard sizes", caption, "device, by rank", "samples", series, kind="bars", whole_x=True)


def durations(tables: RunTables) -> Curve:
    """Simulated seconds per device and round. A round waits for its slowest device."""
    value = pl.col("sim_time_s")
    rows = tables.devices.filter(pl.col("round") >= 0).group_by("round", maintain_order=True)
    found = rows.agg(value.median().alias("median"), value.min().alias("min"), value.max().alias("max"))
    points = [(round_ + 1, median, low, high) for round_, median, low, high in found.iter_rows()]
    series = Series(
        "median device, and fastest to slowest",
        tuple((x, median) for x, median, _, _ in points),
        tuple((low, high) for _, _, low, high in points),
    )
    caption = "Simulated compute and transfer time of each device. A round takes as long as its slowest device."
    return Curve(
        "durations", "Device-round times", caption, ROUNDS, "simulated s", (series,) if points else (), whole_x=True
    )


def _fan(tables: RunTables) -> Curve:
    rows = fan(tables)
    xs = [row[0] for row in rows]
    middle, lowest, highest = ([row[at] for row in rows] for at in (4, 2, 6))
    band = tuple(zip(lowest, highest, strict=True))
    series = (
        Series("median device, and 10 % to 90 %", tuple(zip(xs, middle, strict=True)), band),
        Series("worst decile, mean", tuple((row[0], row[1]) for row in rows)),
    )
    caption = "Accuracy of each device's own model on its own test shard; each device counts once."
    return Curve(
        "personal_spread", "Accuracy over devices", caption, ROUNDS, "accuracy (fraction correct)",
        series if rows else (), whole_x=True, fraction=True, choice="by round",
    )  # fmt: skip


def _histogram(tables: RunTables) -> Curve:
    scores = [accuracy for _, accuracy, _ in last_scores(tables)]
    counts = Counter(min(int(score * _BINS), _BINS - 1) for score in scores)
    points = tuple(((at + 0.5) / _BINS, counts[at]) for at in range(_BINS)) if scores else ()
    series = (Series("devices", points),) if points else ()
    caption = "Number of devices by accuracy, at the last evaluation."
    return Curve(
        "personal_histogram", "Devices by accuracy", caption, "accuracy (fraction correct)", "devices", series,
        kind="bars", choice="at the end",
    )  # fmt: skip


def _by_shard(tables: RunTables) -> Curve:
    shards = _shards(tables)
    points = [(shards[device], accuracy) for device, accuracy, _ in last_scores(tables) if device in shards]
    series = (Series("devices", tuple(sorted(points))),) if points else ()
    caption = "Each device's accuracy at the last evaluation, against its training samples."
    return Curve(
        "personal_by_shard", "Accuracy by shard size", caption, "training samples", "accuracy (fraction correct)",
        series, kind="dots", whole_x=True, fraction=True, choice="by shard size",
    )  # fmt: skip


def _shards(tables: RunTables) -> dict[int, int]:
    """Training samples of each device in the log."""
    return dict(tables.devices.group_by("device").agg(pl.col("num_samples").max()).sort("device").iter_rows())
