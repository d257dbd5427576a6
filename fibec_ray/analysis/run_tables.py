"""The tables of one run on its page: results, fairness, costs, partition, actors."""

from __future__ import annotations

from typing import Any

import polars as pl

from fibec_ray.analysis.fairness import last_spread
from fibec_ray.analysis.formats import NONE, Column, Row, Table
from fibec_ray.analysis.log import RunLog
from fibec_ray.analysis.scores import RECENT, Score, scores_of
from fibec_ray.analysis.speed_classes import class_results
from fibec_ray.analysis.tables import RunTables, latest_layers
from fibec_ray.analysis.units import BYTES, JOULES, SECONDS, readable

MAX_ACTORS = 16
NO_PERSONAL = (
    "Devices have no models of their own in this method, so personal scores equal the global ones and are left out."
)


def tables_of(log: RunLog, tables: RunTables) -> dict[str, list[Table]]:
    """Tables by section of the page; a section without data is empty."""
    return {
        "Scores": _some(_results(scores_of(tables, log.anchors(), log.fact("metric")), tables), _fairness(tables)),
        "Cost": _some(_costs(tables)),
        "Layers and masks": _some(_layers(tables)),
        "Devices": _some(_partition(log, tables), _speed_classes(tables), _actors(tables)),
    }


def _some(*found: Table) -> list[Table]:
    return [table for table in found if table.rows]


def _results(scores: list[Score], tables: RunTables) -> Table:
    def after(name: str) -> Column:
        return Column(f"{name} (round)", lambda row: f"{row[name]:.4f} ({row[f'{name}_after']})")

    columns = (
        Column("bigger is better", lambda row: str(row["label"])),
        after("final"),
        after("best"),
        Column(f"mean of last {RECENT}", lambda row: f"{row['recent']:.4f}{_few(row['num_recent'])}"),
        Column("without learning", _anchor),
    )
    notes = (NO_PERSONAL,) if tables.personal_equals_global() else ()
    return Table("results", "", columns, tuple(vars(score) for score in scores), notes)


def _few(num_recent: int) -> str:
    return f" of {num_recent}" if num_recent < RECENT else ""


def _anchor(row: Row) -> str:
    return NONE if row["anchor"] is None else f"{row['anchor']:.4f} ({row['anchor_label']})"


def _fairness(tables: RunTables) -> Table:
    spread = last_spread(tables)
    names = ("worst_decile", "median", "best_decile", "mean", "deviation")
    columns = [Column("devices", lambda row: str(row["num_devices"]))]
    columns += [_number(name.replace("_", " "), name, ".4f") for name in names]
    note = "Accuracy of each device's model on its own test shard, last evaluation. A decile is a tenth of the devices."
    return Table("fairness", "Over devices", tuple(columns), (vars(spread),) if spread else (), (note,))


def _costs(tables: RunTables) -> Table:
    """Costs of setup, of the rounds, and of both."""
    setup, rounds = pl.col("round") < 0, pl.col("round") >= 0
    rows = [
        {"phase": phase} | _sums(tables, when)
        for phase, when in (("setup", setup), ("rounds", rounds), ("total", pl.lit(True)))
        if len(tables.rounds.filter(when))
    ]
    seconds = [("simulated time", "sim_time_s"), ("real time", "wall_time_s")]
    columns = (
        Column("", lambda row: str(row["phase"])),
        *(_readable(title, name, SECONDS) for title, name in seconds),
        _readable("down", "bytes_down", BYTES),
        _readable("up: change", "bytes_up_delta", BYTES),
        _readable("up: extras", "bytes_up_extras", BYTES),
        _readable("both ways", "bytes_all", BYTES),
        *(_count(title, name) for title, name in (("samples", "num_samples"), ("steps", "num_steps"))),
        Column("TFLOP", lambda row: f"{row['flops'] / 1e12:.4g}"),
        *([_readable("energy", "energy_j", JOULES)] if tables.rounds.get_column("energy_j").count() else ()),
        _count("lost", "num_lost"),
        *_dropped(tables),
    )
    notes = [
        "Extras: what the method sends in addition to the adapter's change, such as layer scores or Fisher factors."
    ]
    if any(tables.column("num_dropped")):
        notes.append(
            "Dropped: devices that dropped out or whose update came too late. Their costs are predicted, and other "
            "columns leave them out. Logs of earlier releases lack these costs."
        )
    return Table("cost", "", columns, tuple(rows), tuple(notes))


def _dropped(tables: RunTables) -> list[Column]:
    """Devices whose work does not count, and its cost where the log has it."""
    if not any(tables.column("num_dropped")):
        return []
    costs = [("dropped: both ways", "dropped_bytes", BYTES), ("dropped: energy", "dropped_energy_j", JOULES)]
    known = None not in tables.column("dropped_bytes")
    return [_count("dropped", "num_dropped"), *(_readable(*cost) for cost in costs if known)]


def _sums(tables: RunTables, when: pl.Expr) -> dict[str, Any]:
    names = ["bytes_up", "bytes_down", "num_samples", "num_steps", "flops", "energy_j", "num_lost", "num_dropped"]
    names += ["dropped_bytes", "dropped_energy_j"]
    sums = tables.rounds.filter(when).select(*(pl.col(name).sum() for name in names)).row(0, named=True)
    parts = ("bytes_up_delta", "bytes_up_extras")
    sums |= tables.devices.filter(when).select(*(pl.col(name).sum() for name in parts)).row(0, named=True)
    seconds = ("sim_time_s", "wall_time_s")  # cumulative: a phase took its last value less the one before it
    spent = tables.rounds.select(
        pl.lit(True).alias("_"),
        when.alias("_when"),
        *((pl.col(name) - pl.col(name).shift(1, fill_value=0)).alias(name) for name in seconds),
    )
    sums |= spent.filter("_when").select(*(pl.col(name).sum() for name in seconds)).row(0, named=True)
    return sums | {"bytes_all": sums["bytes_up"] + sums["bytes_down"]}


def _layers(tables: RunTables) -> Table:
    columns = (
        Column("layer", lambda row: str(row["layer"])),
        Column("adapter", lambda row: "shared" if row["shared"] else "personal"),
        _number("sensitivity", "sensitivity", ".4g"),
        _number("Fisher mass", "fisher_mass", ".4g"),
        _number("kept neurons", "kept_neurons", ".4g"),
    )
    note = "Newest values of each layer. Shared: a global aggregation layer; its adapter is sent to the server."
    return Table("layers", "", columns, tuple(vars(layer) for layer in latest_layers(tables)), (note,))


def _partition(log: RunLog, tables: RunTables) -> Table:
    """Heterogeneity of the devices' data from the summary, and shard sizes from the log."""
    found = log.numbers("heterogeneity")
    rows: list[dict[str, Any]] = [{"what": name.replace("_", " "), "value": value} for name, value in found.items()]
    sizes = tables.devices.group_by("device").agg(pl.col("num_samples").max()).get_column("num_samples")
    if len(sizes):
        both = {"smallest shard": sizes.min(), "median shard": sizes.median(), "largest shard": sizes.max()}
        known = {row["what"] for row in rows}
        rows += [{"what": name, "value": value} for name, value in both.items() if name not in known]
    columns = (Column("partition", lambda row: str(row["what"])), _number("", "value", ".4g"))
    note = (
        "Shards in training samples. tv mean: total variation distance between a device's shares and the overall "
        "shares; shift mean: distance of a device's mean from the overall mean, in standard deviations (for several "
        "labels per sample: difference of their shares). Means over devices; 0: all devices alike."
    )
    return Table("partition", "", columns, tuple(rows), (note,))


def _speed_classes(tables: RunTables) -> Table:
    columns = (
        Column("speed class", lambda row: str(row["speed_class"])),
        _count("devices", "num_devices"),
        _number("accuracy", "accuracy", ".4f"),
        _count("device-rounds", "device_rounds"),
        _readable("time of one, median", "median_s", SECONDS),
        _readable("energy of all", "energy_j", JOULES),
    )
    note = (
        "Accuracy at the last evaluation: the devices' own models on their own test shards, pooled. Times and energy "
    )
    note += "are simulated."
    return Table("speed_classes", "By speed class", columns, tuple(map(vars, class_results(tables))), (note,))


def _actors(tables: RunTables) -> Table:
    how = (
        pl.len().alias("device_rounds"),
        pl.col("attempt").sum().alias("retries"),
        pl.col("compute_s").sum(),
        pl.col("peak_memory_bytes", "peak_gpu_memory_bytes").max(),
    )
    found = tables.devices.group_by("actor").agg(*how).sort("compute_s", "actor", descending=[True, False])
    columns = (
        Column("actor", lambda row: str(row["actor"])),
        _count("device-rounds", "device_rounds"),
        _count("retries", "retries"),
        _readable("work", "compute_s", SECONDS),
        _readable("peak memory", "peak_memory_bytes", BYTES),
    )
    on_gpu = found.get_column("peak_gpu_memory_bytes").count() > 0
    gpu = (_readable("peak GPU memory", "peak_gpu_memory_bytes", BYTES),) if on_gpu else ()
    left_out = len(found) - MAX_ACTORS
    notes = (f"The {MAX_ACTORS} actors that worked longest, of {len(found)}.",) if left_out > 0 else ()
    return Table("actors", "", (*columns, *gpu), tuple(found.head(MAX_ACTORS).iter_rows(named=True)), notes)


def _number(title: str, name: str, style: str) -> Column:
    return Column(title, lambda row: NONE if row[name] is None else format(row[name], style))


def _count(title: str, name: str) -> Column:
    return Column(title, lambda row: f"{row[name]:,}")


def _readable(title: str, name: str, units: Any) -> Column:
    return Column(title, lambda row: NONE if row[name] is None else readable(row[name], units))
