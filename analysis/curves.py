"""Decides which curves a run's log holds and what they say; `figures.py` draws them for `report.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.tables import Point, RunTables, any_finite, cohort_means, latest_layers
from analysis.units import BYTES, COUNT, SECONDS, Unit, unit_for

Anchors = Mapping[str, float]
"""Accuracies that need no training: 'majority' (always the commonest class), 'own_majority' (each device its own).

Of a regression R2: 'mean' (of the training values), 'own_mean' (each device's own).
"""


@dataclass(frozen=True)
class Series:
    label: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Curve:
    """One figure. levels: horizontal lines to compare with, as (label, y)."""

    stem: str
    """file name without its ending"""
    title: str
    caption: str
    """one sentence"""
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    levels: tuple[tuple[str, float], ...] = ()
    kind: Literal["lines", "bars"] = "lines"
    whole_x: bool = False
    """x counts something: ticks at integers only"""
    fraction: bool = False
    """y lies between 0 and 1, and the figure shows all of that"""


@dataclass(frozen=True)
class _Axis:
    """A cumulative column of the rounds table to draw accuracy against."""

    column: str
    stem: str
    title: str
    label: str
    units: tuple[Unit, ...]
    caption: str


_ROUNDS = "rounds completed"
_AXES = (
    _Axis("round", "rounds", "rounds", _ROUNDS, (), "Accuracy after each evaluated round."),
    _Axis(
        "sim_time_s",
        "sim_time",
        "simulated time",
        "simulated time",
        SECONDS,
        "Accuracy against the time that the simulated devices and links would have taken.",
    ),
    _Axis("bytes_total", "bytes", "traffic", "sent both ways", BYTES, "Accuracy against all bytes sent, up and down."),
    _Axis(
        "num_samples_total",
        "samples",
        "training samples",
        "training samples visited",
        COUNT,
        "Accuracy against training samples visited on all devices, repeats included.",
    ),
)
_ACCURACIES = (
    ("global_accuracy", "global model, test set"),
    ("personal_accuracy", "personalised, all devices"),
    ("personal_accuracy_trained", "personalised, devices trained so far"),
)
_LOSSES = (("global_loss", "global model, test set"), ("personal_loss", "personalised, all devices"))
_METRICS = (("global_metric", "global model, test set"), ("personal_metric", "personalised, all devices"))


def curves_of(tables: RunTables, anchors: Anchors, metric: str | None = None) -> list[Curve]:
    """Every curve that the log has numbers for, in the order of the page. metric: the name of the task's own metric."""
    found = [
        *accuracy_curves(tables, anchors),
        *metric_curves(tables, metric, anchors),
        *loss_curves(tables, metric),
        *curriculum_curves(tables),
        *mask_curves(tables),
        *layer_curves(tables),
    ]
    return [curve for curve in found if curve.series]


def accuracy_curves(tables: RunTables, anchors: Anchors) -> list[Curve]:
    """Accuracy against rounds, simulated time, bytes and samples."""
    return [_accuracy_curve(tables, axis, _levels(anchors)) for axis in _AXES]


def metric_curves(tables: RunTables, metric: str | None, anchors: Anchors) -> list[Curve]:
    """The task's own metric, where it is another than accuracy."""
    if metric == "accuracy":
        return []
    name = metric or "task metric"
    caption = "The task's own metric after each evaluated round."
    series = _series(tables, "round", _METRICS)
    levels = _levels(anchors) if metric == "r2" else ()
    return [Curve("metric_by_rounds", f"{name} by rounds", caption, _ROUNDS, name, series, levels, whole_x=True)]


def loss_curves(tables: RunTables, metric: str | None = None) -> list[Curve]:
    """Evaluation loss and, apart from it, training loss."""
    unit = "loss (half squared error)" if metric == "r2" else "loss (nats)"
    evaluation = _series(tables, "round", _LOSSES)
    training = _series(tables, "round", (("train_loss", "training, mean over the round's steps"),))
    training_caption = (
        "Mean loss over the steps of each round, on the data that devices trained on: "
        "under a curriculum it rises as harder data joins, so it does not rank methods."
    )
    return [
        Curve(
            "evaluation_loss",
            "Evaluation loss",
            "Mean loss on test data after each evaluated round.",
            _ROUNDS,
            unit,
            evaluation,
            whole_x=True,
        ),
        Curve("training_loss", "Training loss", training_caption, _ROUNDS, unit, training, whole_x=True),
    ]


def curriculum_curves(tables: RunTables) -> list[Curve]:
    """How much of their data devices saw, and how hard it was."""
    fraction = _series(tables, "round", (("data_fraction", "mean over the cohort"),))
    caption = "Share of a device's batches that its curriculum lets it train on, mean over the cohort."
    return [
        Curve(
            "data_fraction",
            "Data in use",
            caption,
            _ROUNDS,
            "visible batches / all",
            fraction,
            whole_x=True,
            fraction=True,
        ),
        _seen(tables, "difficulty_seen", "Difficulty seen", "difficulty score (method's own unit)", "difficulty score"),
        _seen(tables, "grade_seen", "True difficulty seen", "grade", "true difficulty grade"),
        _seen(tables, "length_seen", "Length seen", "tokens per sample", "length"),
    ]


def mask_curves(tables: RunTables) -> list[Curve]:
    """How many personal entries the mask lets move, and how many of them it let move the last time."""
    drawn = (
        (
            "kept_fraction",
            "Personal entries in use",
            "Share of the personal (never sent) entries that the mask lets move, mean over the cohort.",
            "entries that move / all",
        ),
        (
            "mask_overlap",
            "Overlap of masks",
            "Of the entries that a device's mask lets move now or let move at its last participation, the share that "
            "it did both times; mean over returning devices.",
            "in both / in either",
        ),
    )
    return [
        Curve(column, title, caption, _ROUNDS, y_label, _mean_series(tables, column), whole_x=True, fraction=True)
        for column, title, caption, y_label in drawn
    ]


def _mean_series(tables: RunTables, column: str) -> tuple[Series, ...]:
    return _series(tables, "round", ((column, "mean over the cohort"),))


def layer_curves(tables: RunTables) -> list[Curve]:
    """Layer sensitivity, with the shared layers marked."""
    layers = [layer for layer in latest_layers(tables) if layer.sensitivity is not None]
    groups = (("shared (sent to the server)", True), ("personal (stays on the device)", False))
    series = [
        Series(label, tuple((entry.layer, entry.sensitivity or 0.0) for entry in layers if entry.shared == shared))
        for label, shared in groups
    ]
    caption = "Sensitivity of each layer, by which the layers to share are chosen; mean over devices."
    kept = tuple(entry for entry in series if entry.points)
    y_label = "sensitivity (method's own unit)"
    return [
        Curve(
            "layer_sensitivity",
            "Layer sensitivity",
            caption,
            "layer (0 is nearest the input)",
            y_label,
            kept,
            kind="bars",
            whole_x=True,
        )
    ]


def _accuracy_curve(tables: RunTables, axis: _Axis, levels: tuple[tuple[str, float], ...]) -> Curve:
    series = _series(tables, axis.column, _ACCURACIES)
    largest = max((x for entry in series for x, _ in entry.points), default=0.0)
    unit = unit_for(largest, axis.units) if axis.units else Unit("", 1)
    return Curve(
        stem=f"accuracy_by_{axis.stem}",
        title=f"Accuracy by {axis.title}",
        caption=axis.caption,
        x_label=f"{axis.label} ({unit.name})" if unit.name else axis.label,
        y_label="accuracy (fraction correct)",
        series=tuple(Series(entry.label, tuple((x / unit.size, y) for x, y in entry.points)) for entry in series),
        levels=levels,
        whole_x=axis.column == "round",
    )


def _levels(anchors: Anchors) -> tuple[tuple[str, float], ...]:
    labels = {
        "majority": "majority class",
        "own_majority": "own majority class",
        "mean": "mean",
        "own_mean": "own mean",
    }
    return tuple((f"{label} ({anchors[key]:.3f})", anchors[key]) for key, label in labels.items() if key in anchors)


def _series(tables: RunTables, x: str, columns: Sequence[tuple[str, str]]) -> tuple[Series, ...]:
    found = [(label, tables.points(x, column)) for column, label in columns]
    return tuple(Series(label, tuple(points)) for label, points in found if any_finite(points))


def _seen(tables: RunTables, column: str, title: str, y_label: str, what: str) -> Curve:
    points = cohort_means(tables, column)
    series = (Series("mean over samples seen", tuple(points)),) if any_finite(points) else ()
    caption = f"Mean {what} of the samples that the cohort trained on, by round."
    return Curve(column, title, caption, _ROUNDS, y_label, series, whole_x=True)
