"""Curves over the rounds of one run: scores, losses, curriculum, masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import polars as pl

from fibec_ray.analysis.figure import Anchors, Curve, Series
from fibec_ray.analysis.tables import RunTables, any_finite, cohort_means
from fibec_ray.analysis.units import BYTES, COUNT, JOULES, SECONDS, Unit, unit_for
from fibec_ray.roundlog.scores import anchors_in

ROUNDS = "round"


@dataclass(frozen=True)
class Axis:
    """A cumulative column of the rounds table to draw scores against."""

    column: str
    stem: str
    title: str
    label: str
    units: tuple[Unit, ...]

    def over(self, curve: Curve) -> Curve:
        """A curve of scores over this column, in the unit that suits the largest x."""
        largest = max((x for entry in curve.series for x, _ in entry.points), default=0.0)
        unit = unit_for(largest, self.units) if self.units else Unit("", 1)
        scaled = (tuple((x / unit.size, y) for x, y in entry.points) for entry in curve.series)
        return replace(
            curve,
            stem=f"{curve.stem}_by_{self.stem}",
            title=f"{curve.title} by {self.title}",
            x_label=f"{self.label} ({unit.name})" if unit.name else self.label,
            series=tuple(replace(entry, points=points) for entry, points in zip(curve.series, scaled, strict=True)),
            whole_x=self.column == "round",
            choice=self.title,
        )


AXES = (
    Axis("round", "rounds", "rounds", ROUNDS, ()),
    Axis("sim_time_s", "sim_time", "simulated time", "simulated time", SECONDS),
    Axis("bytes_total", "bytes", "bytes", "sent both ways", BYTES),
    Axis("energy_total_j", "energy", "energy", "simulated energy of all devices", JOULES),
    Axis("epsilon", "epsilon", "privacy", "epsilon", ()),
    Axis("num_samples_total", "samples", "samples", "training samples visited, repeats included", COUNT),
)
OF_VALUES = ("r2", "pearson")
"""Metrics of tasks whose answers are real values."""
_TRAINED = ("personal_accuracy_trained", "personal models, trained devices")
ANCHORS = {
    "majority": "majority class",
    "own_majority": "each device's majority class",
    "mean": "mean of the training values",
    "own_mean": "each device's mean",
    "chance": "chance",
}


def accuracy_curves(tables: RunTables, anchors: Anchors) -> list[Curve]:
    """Accuracy against rounds, simulated time, bytes, energy and samples."""
    caption = "Accuracy after each evaluated round. The buttons show it over time, bytes, energy and samples."
    curve = Curve(
        "accuracy", "Accuracy", caption, "", "accuracy (fraction correct)", (), _levels(anchors_in("accuracy", anchors))
    )
    return _by_axes(tables, curve, "accuracy", _TRAINED)


def loss_curves(tables: RunTables, metric: str | None = None) -> list[Curve]:
    """Evaluation loss against rounds, simulated time, bytes, energy and samples."""
    caption = "Mean loss on test data after each evaluated round."
    curve = Curve("evaluation_loss", "Evaluation loss", caption, "", _loss_unit(metric), ())
    return _by_axes(tables, curve, "loss")


def perplexity_curves(tables: RunTables) -> list[Curve]:
    """Perplexity of the responses, for tasks that answer in text."""
    caption = "exp(mean loss over all response tokens of the test data), after each evaluated round."
    return _by_axes(tables, Curve("perplexity", "Perplexity", caption, "", "perplexity", ()), "perplexity")


def metric_curves(tables: RunTables, metric: str | None, anchors: Anchors) -> list[Curve]:
    """The task's own metric, for tasks that are not scored by accuracy."""
    if metric == "accuracy":
        return []
    name = metric or "task metric"
    levels = _levels(anchors_in("metric", anchors))
    caption = "The task's own metric after each evaluated round."
    return _by_axes(tables, Curve("metric", name, caption, "", name, (), levels), "metric")


def further_curves(tables: RunTables) -> list[list[Curve]]:
    """Further figures of the task, such as precision and recall: the curves of each over all axes."""
    found = {who: tables.named(f"{who}_metrics") for who in ("global", "personal")}
    names = dict.fromkeys(name for rows in found.values() for row in rows for name in row)
    return [_further(tables, found, name) for name in names]


def _further(tables: RunTables, found: Mapping[str, Sequence[Mapping[str, float]]], name: str) -> list[Curve]:
    columns = [
        pl.Series(f"{who}_{name}", [row.get(name) for row in rows], dtype=pl.Float64) for who, rows in found.items()
    ]
    caption = (
        "A further figure of the task after each evaluated round. The buttons show it over time, bytes, energy and "
        "samples."
    )
    wide = replace(tables, rounds=tables.rounds.with_columns(columns))
    return _by_axes(wide, Curve(f"metric_{name}", name, caption, "", name, ()), name)


def training_loss(tables: RunTables, metric: str | None = None) -> Curve:
    """Training loss, in a figure of its own."""
    caption = (
        "Mean loss over the steps of each round, on training data. Under a curriculum it rises when harder data joins, "
        "so do not rank methods by it."
    )
    series = series_of(tables, "round", (("train_loss", "training, mean over the round's steps"),))
    return Curve("training_loss", "Training loss", caption, ROUNDS, _loss_unit(metric), series, whole_x=True)


def curriculum_curves(tables: RunTables) -> list[Curve]:
    """How much of their data devices trained on, and how difficult it was."""
    fraction = _fraction(
        tables,
        "data_fraction",
        "Data in use",
        "Share of a device's batches that its curriculum trains on, mean over the cohort.",
        "visible batches / all",
    )
    return [
        fraction,
        _seen(tables, "difficulty_seen", "Difficulty seen", "difficulty score (method's own unit)", "difficulty score"),
        _seen(
            tables,
            "true_difficulty_seen",
            "True difficulty seen",
            "true difficulty (task's own unit)",
            "true difficulty",
        ),
        _seen(tables, "length_seen", "Length seen", "tokens per sample", "length"),
    ]


def mask_curves(tables: RunTables) -> list[Curve]:
    """How many personal entries the mask trains, how stable the mask is, and the Fisher information behind it."""
    kept = "Share of the personal (never sent) entries that the mask trains, mean over the cohort."
    overlap = (
        "Of the entries that a device's mask trains now or trained at its last participation, the share trained both "
        "times; mean over returning devices."
    )
    return [
        _fraction(tables, "kept_fraction", "Personal entries in use", kept, "trained entries / all"),
        _fraction(tables, "mask_overlap", "Overlap of masks", overlap, "in both / in either"),
        _seen(tables, "fisher_trace", "Fisher information", "sum of the diagonal", "trace of the Fisher information"),
    ]


def schedule_curves(tables: RunTables) -> list[Curve]:
    """Dropped devices and staleness per round. A column that is 0 in every round gets no figure."""
    drawn = (
        ("num_dropped", "Dropped devices", "devices", "Devices that were drawn but sent no update that counted."),
        ("mean_staleness", "Staleness", "rounds", "Age of the model that a device started from, mean over the cohort."),
    )
    return [
        Curve(
            column, title, caption, ROUNDS, y_label, series_of(tables, "round", ((column, "per round"),)), whole_x=True
        )
        for column, title, y_label, caption in drawn
        if tables.has(column) and any(tables.column(column))
    ]


def series_of(tables: RunTables, x: str, columns: Sequence[tuple[str, str]]) -> tuple[Series, ...]:
    """One series per column that has numbers. columns: pairs of column and label."""
    found = [(label, tables.points(x, column)) for column, label in columns]
    return tuple(Series(label, tuple(points)) for label, points in found if any_finite(points))


def _by_axes(tables: RunTables, curve: Curve, name: str, *more: tuple[str, str]) -> list[Curve]:
    """Draw a score of the global and personal models over each of AXES. more: further columns and their labels."""
    columns = [(f"global_{name}", "global model")]
    if not tables.personal_equals_global():
        columns += [(f"personal_{name}", "personal models"), *more]
    known = [axis for axis in AXES if tables.has(axis.column)]
    return [axis.over(replace(curve, series=series_of(tables, axis.column, columns))) for axis in known]


def _loss_unit(metric: str | None) -> str:
    return "loss (half squared error)" if metric in OF_VALUES else "loss (nats)"


def _levels(anchors: Anchors) -> tuple[tuple[str, float], ...]:
    return tuple((f"{label} ({anchors[key]:.3f})", anchors[key]) for key, label in ANCHORS.items() if key in anchors)


def _fraction(tables: RunTables, column: str, title: str, caption: str, y_label: str) -> Curve:
    series = series_of(tables, "round", ((column, "mean over the cohort"),))
    return Curve(column, title, caption, ROUNDS, y_label, series, whole_x=True, fraction=True)


def _seen(tables: RunTables, column: str, title: str, y_label: str, what: str) -> Curve:
    points = cohort_means(tables, column)
    series = (Series("mean over samples seen", tuple(points)),) if any_finite(points) else ()
    caption = f"Mean {what} by round, over the cohort by samples seen."
    return Curve(column, title, caption, ROUNDS, y_label, series, whole_x=True)
