"""Heat maps: layers by round and devices by round.

A long run is drawn with several rounds to a column, and a large federation with several devices to a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from fibec_ray.analysis.curves import ROUNDS
from fibec_ray.analysis.figure import Heat
from fibec_ray.analysis.tables import RunTables

MAX_COLUMNS, MAX_ROWS = 200, 120


@dataclass(frozen=True)
class _Drawn:
    column: str
    choice: str
    value_label: str
    caption: str
    how: str = "mean"
    """how to combine the values of one cell: mean, max or len"""


_LAYERS = (
    _Drawn(
        "sensitivity",
        "sensitivity",
        "sensitivity (method's own unit)",
        "The method uses it to choose the layers to share.",
    ),
    _Drawn(
        "fisher_mass",
        "Fisher mass",
        "sum of the diagonal",
        "Fisher information behind the masks, mean over the cohort; 0 in shared layers.",
    ),
    _Drawn("kept_neurons", "kept neurons", "neurons", "Neurons that the mask trains, mean over the cohort."),
    _Drawn("shared", "shared", "share of the rounds", "Layers whose adapter is sent (global aggregation layers)."),
)
_DEVICES = (
    _Drawn("device", "who took part", "device-rounds", "Finished device-rounds.", "len"),
    _Drawn("sim_time_s", "simulated s", "simulated s", "Simulated time of a device-round, compute and transfer."),
    _Drawn("compute_s", "real s", "real s", "Real time that the device's work took."),
    _Drawn("attempt", "retries", "retries", "How often the work was lost with an actor and done again.", "max"),
    _Drawn("train_loss", "training loss", "loss", "Mean loss over the steps of the device-round."),
    _Drawn(
        "difficulty_seen",
        "difficulty",
        "difficulty score",
        "Mean difficulty of the samples that the device trained on.",
    ),
    _Drawn("fisher_trace", "Fisher", "sum of the diagonal", "Fisher information behind the device's mask."),
)


def layer_heats(tables: RunTables) -> list[Heat]:
    """Heat maps of layer scores, Fisher mass, kept neurons and sharing, as far as the log has them."""
    frame = tables.layers.with_columns(pl.col("shared").cast(pl.Float64))
    if not frame.get_column("sensitivity").is_not_null().any() and frame.get_column("shared").min() == 1:
        return []  # the method treats all layers alike
    return [heat for drawn in _LAYERS if (heat := _heat(frame, "layer", drawn)) is not None]


def device_heats(tables: RunTables) -> list[Heat]:
    """Heat maps of devices by round: participation, times, retries, losses, actors."""
    frame = tables.devices.filter(pl.col("round") >= 0)
    found = [heat for drawn in _DEVICES if (heat := _heat(frame, "device", drawn)) is not None]
    return [*found, *_actors(frame)]


def _actors(frame: pl.DataFrame) -> list[Heat]:
    """The actor that did the work; the last one where a cell has several device-rounds."""
    names = sorted(set(frame.get_column("actor").to_list()), key=lambda name: (len(name), name))
    if not names:
        return []
    numbers = {name: float(at) for at, name in enumerate(names)}
    where = frame.with_columns(pl.col("actor").replace_strict(numbers, return_dtype=pl.Float64))
    drawn = _Drawn("actor", "actor", "actor", f"The actor that did the work; {len(names)} in all.", "last")
    found = _heat(where, "device", drawn, tuple(names))
    return [found] if found else []


def _heat(frame: pl.DataFrame, row: str, drawn: _Drawn, names: tuple[str, ...] = ()) -> Heat | None:
    """A heat map with one row per layer or device; None where the log has no values, or only zeros."""
    known = frame.filter(pl.col(drawn.column).is_not_null())
    if not len(known) or (drawn.how == "max" and not known.get_column(drawn.column).max()):
        return None
    ids, rounds = frame.get_column(row).unique().sort().to_list(), frame.get_column("round")
    per_row, first = -(-len(ids) // MAX_ROWS), int(rounds.min())  # type: ignore[arg-type]
    per_column = -(-(int(rounds.max()) - first + 1) // MAX_COLUMNS)  # type: ignore[arg-type]
    cells = _cells(known, row, ids, per_row, first, per_column, drawn)
    return Heat(
        stem=f"{row}s_{drawn.column}",
        title=f"{row.capitalize()}s: {drawn.choice}",
        caption=drawn.caption + _binning(row, per_row, per_column, drawn.how),
        x_label=ROUNDS,
        y_label=row,
        value_label=drawn.value_label,
        columns=tuple(first + 1 + at * per_column for at in range(len(cells[0]))),
        rows=tuple(_row_label(ids[at : at + per_row]) for at in range(0, len(ids), per_row)),
        values=tuple(tuple(line) for line in cells),
        names=names,
        choice=drawn.choice,
    )


def _cells(
    known: pl.DataFrame, row: str, ids: list[int], per_row: int, first: int, per_column: int, drawn: _Drawn
) -> list[list[float | None]]:
    ranks = {id_: at // per_row for at, id_ in enumerate(ids)}
    value = pl.col(drawn.column)
    how = {"mean": value.mean(), "max": value.max(), "len": pl.len(), "last": value.last()}[drawn.how]
    found = (
        known.with_columns(
            pl.col(row).replace_strict(ranks, return_dtype=pl.Int64).alias("_at"),
            ((pl.col("round") - first) // per_column).alias("_bin"),
        )
        .group_by("_at", "_bin")
        .agg(how.cast(pl.Float64).alias("_value"))
    )
    width = int(found.get_column("_bin").max()) + 1  # type: ignore[arg-type]
    cells: list[list[float | None]] = [[None] * width for _ in range(-(-len(ids) // per_row))]
    for at, column, number in found.iter_rows():
        cells[at][column] = number
    return cells


def _binning(row: str, per_row: int, per_column: int, how: str) -> str:
    whole = {"mean": "mean", "max": "highest", "len": "number", "last": "last"}[how]
    parts = [f"{per_column} rounds to a column"] if per_column > 1 else []
    parts += [f"{per_row} {row}s to a row"] if per_row > 1 else []
    return f" {' and '.join(parts).capitalize()}, {whole}." if parts else ""


def _row_label(ids: Sequence[int]) -> str:
    return str(ids[0]) if len(ids) == 1 else f"{ids[0]}–{ids[-1]}"
