"""Device-rounds as bars over simulated time, by actor, with their retries."""

from __future__ import annotations

import polars as pl

from fibec_ray.analysis.figure import Span, Timeline
from fibec_ray.analysis.tables import RunTables
from fibec_ray.analysis.units import SECONDS, unit_for

MAX_SPANS = 1500
"""A longer run shows its last rounds only."""


def timeline(tables: RunTables) -> Timeline | None:
    """Make the timeline. A round starts when the previous one has ended; its devices start together."""
    starts = tables.rounds.select("round", start=pl.col("sim_time_s").shift(1, fill_value=0.0))
    rows = tables.devices.filter(pl.col("round") >= 0).join(starts, on="round").sort("round", "device")
    drawn = rows.filter(pl.col("round") >= _first_drawn(rows))
    if drawn.is_empty():
        return None
    unit = unit_for(float((drawn["start"] + drawn["sim_time_s"]).max()), SECONDS)  # type: ignore[arg-type]
    devices, actors = (drawn.get_column(name).unique().sort().to_list() for name in ("device", "actor"))
    columns = drawn.select("device", "start", "sim_time_s", "actor", "round", "attempt")
    size, row_of = unit.size, {device: at for at, device in enumerate(devices)}
    spans = tuple(
        Span(row_of[device], start / size, (start + time) / size, actors.index(actor), round_ + 1, again)
        for device, start, time, actor, round_, again in columns.iter_rows()
    )
    first, last = spans[0].rounds, spans[-1].rounds
    which = "" if len(drawn) == len(rows) else f" The last {last - first + 1} rounds."
    return Timeline(
        stem="timeline",
        title="Timeline of devices",
        caption=f"Work of each device over simulated time, coloured by actor; a frame marks repeated work.{which}",
        x_label=f"simulated time ({unit.name})",
        y_label="device",
        rows=tuple(map(str, devices)),
        spans=spans,
        names=tuple(actors),
    )


def _first_drawn(rows: pl.DataFrame) -> int:
    """The earliest round from which on there are at most MAX_SPANS device-rounds; the last one at least."""
    counts = rows.group_by("round").len().sort("round", descending=True)
    fitting = counts.filter((pl.col("len").cum_sum() <= MAX_SPANS) | (pl.col("round") == pl.col("round").max()))
    return min(fitting.get_column("round").to_list(), default=0)
