"""Curves of several variants in one figure: means over seeds, with their range."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from fibec_ray.analysis.curves import AXES, ROUNDS, Axis
from fibec_ray.analysis.fairness import fan
from fibec_ray.analysis.figure import Card, Curve, Series
from fibec_ray.analysis.tables import RunTables
from fibec_ray.roundlog.scores import score_column

Runs = Mapping[str, Sequence[RunTables]]
"""By variant, one entry a seed."""
Rows = dict[int, tuple[float, float]]
"""(x, y) by round."""

_CAPTION = "Means over seeds at each evaluated round; bars go from the lowest seed to the highest."


def overlay_cards(runs: Runs, metric: str | None) -> list[Card]:
    """Scores over each cost, the worst devices, and curricula; one line per variant."""
    column, name = score_column(metric), "accuracy" if score_column(metric) == "accuracy" else str(metric)
    scores = [
        [_over(axis, runs, f"{model}_{column}", f"{title} {name}") for axis in AXES]
        for model, title in (("personal", "Personal"), ("global", "Global"))
    ]
    losses = [_over(axis, runs, "personal_loss", "Personal loss") for axis in AXES]
    others = [
        _by_round(runs, _worst_decile, "worst_decile", "Worst decile of devices", "accuracy (fraction correct)"),
        _by_round(runs, _logged("data_fraction"), "data_fraction", "Data in use", "visible batches / all"),
        _by_round(runs, _logged("train_loss"), "train_loss", "Training loss", "loss"),
    ]
    found = [*scores, losses, *([curve] for curve in others)]
    cards = [Card("Curves", tuple(curve for curve in curves if curve.series)) for curves in found]
    return [card for card in cards if card.figures]


def _over(axis: Axis, runs: Runs, column: str, title: str) -> Curve:
    found = {
        name: [_rows(tables, axis.column, column) for tables in seeds if tables.has(axis.column)]
        for name, seeds in runs.items()
    }
    return axis.over(Curve(column, title, _CAPTION, "", title.lower(), _series(found)))


def _by_round(runs: Runs, rows: Callable[[RunTables], Rows], stem: str, title: str, y_label: str) -> Curve:
    found = {name: [rows(tables) for tables in seeds] for name, seeds in runs.items()}
    return Curve(f"all_{stem}", title, _CAPTION, ROUNDS, y_label, _series(found), whole_x=True)


def _series(found: Mapping[str, Sequence[Rows]]) -> tuple[Series, ...]:
    return tuple(
        Series(name, tuple(points), tuple(band))
        for name, seeds in found.items()
        for points, band in [_over_seeds(seeds)]
        if points
    )


def _over_seeds(seeds: Sequence[Rows]) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
    """Means of x and y over seeds, and the range of y, at each round that all seeds have."""
    known = [rows for rows in seeds if rows]
    common = sorted(set[int].intersection(*(set(rows) for rows in known))) if known else []
    xs = [[rows[round_][0] for rows in known] for round_ in common]
    ys = [[rows[round_][1] for rows in known] for round_ in common]
    points = [(fmean(x), fmean(y)) for x, y in zip(xs, ys, strict=True)]
    return points, [(min(y), max(y)) for y in ys] if len(known) > 1 else []


def _rows(tables: RunTables, x: str, y: str) -> Rows:
    found = zip(tables.column("round"), tables.column(x), tables.column(y), strict=True)
    shift = 1 if x == "round" else 0
    known = ((round_, left, right) for round_, left, right in found if left is not None and right is not None)
    return {round_: (left + shift, right) for round_, left, right in known}


def _logged(column: str) -> Callable[[RunTables], Rows]:
    return lambda tables: _rows(tables, "round", column)


def _worst_decile(tables: RunTables) -> Rows:
    return {int(row[0]) - 1: (row[0], row[1]) for row in fan(tables)}
