"""The numbers of a run's score table: final, best and recent mean of every evaluation column."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fibec_ray.analysis.curves import ANCHORS
from fibec_ray.analysis.tables import RunTables
from fibec_ray.roundlog.scores import anchors_in

RECENT = 3
"""evaluations in the recent mean"""


@dataclass(frozen=True)
class Score:
    """One row of the summary table. A bigger value is better."""

    column: str
    """of the `rounds` table"""
    label: str
    final: float
    final_after: int
    """round of the last evaluation: 0 is before training, then 1, 2 ..."""
    best: float
    best_after: int
    recent: float
    """mean of the last RECENT evaluations"""
    num_recent: int
    """RECENT, or fewer where there were fewer evaluations"""
    anchor: float | None
    """the score of a predictor that learns nothing"""
    anchor_label: str


_ROWS = (
    ("global_accuracy", "Global accuracy"),
    ("personal_accuracy", "Personal accuracy"),
    ("personal_accuracy_trained", "Personal accuracy, devices trained so far"),
    ("global_metric", "Global {metric}"),
    ("personal_metric", "Personal {metric}"),
)

GUESSED = "chance"
"""The baseline of kinds of task in which no answer is more frequent than another."""
_ANCHORS = {"global": (GUESSED, "majority", "mean"), "personal": (GUESSED, "own_majority", "own_mean")}
"""The baseline of a model is the first of these that the run has."""


def scores_of(tables: RunTables, anchors: Mapping[str, float], metric: str | None) -> list[Score]:
    """One row per evaluation column that has numbers.

    The task's own metric is left out where it is accuracy, and personal scores where they equal the global ones.
    """
    rows = [row for row in _ROWS if metric != "accuracy" or not row[0].endswith("_metric")]
    if tables.personal_equals_global():
        rows = [row for row in rows if not row[0].startswith("personal_")]
    if GUESSED in anchors:
        rows = [row for row in rows if row[0].count("accuracy")]
    found = [_score(tables, column, label.format(metric=metric or "task metric"), anchors) for column, label in rows]
    return [score for score in found if score is not None]


def _anchor_of(column: str, anchors: Mapping[str, float]) -> tuple[str, float | None]:
    """The name and score of the baseline of a column of `rounds`; ("", None) if the run has none.

    anchors: `anchors` of RUN/summary.json.
    """
    model, score = column.split("_")[:2]
    known = anchors_in(score, anchors)
    return next(((ANCHORS[name], known[name]) for name in _ANCHORS[model] if name in known), ("", None))


def _score(tables: RunTables, column: str, label: str, anchors: Mapping[str, float]) -> Score | None:
    points = tables.points("round", column)
    if not points:
        return None
    recent = [value for _, value in points[-RECENT:]]
    best_after, best = max(points, key=lambda point: -math.inf if math.isnan(point[1]) else point[1])
    final_after, final = points[-1]
    anchor_label, anchor = _anchor_of(column, anchors)
    return Score(
        column=column,
        label=label,
        final=final,
        final_after=int(final_after),
        best=best,
        best_after=int(best_after),
        recent=sum(recent) / len(recent),
        num_recent=len(recent),
        anchor=anchor,
        anchor_label=anchor_label,
    )
