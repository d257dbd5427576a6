"""Which scores of a run count. The console, the tables and the figures call it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

ACCURACIES = ("majority", "own_majority", "chance")
"""Baselines that are accuracies."""
OWN_METRIC = "_metric"
"""The end of the names of baselines in the task's own metric, where this is not accuracy."""
SAME = 5e-5
"""Scores that differ by less look equal in tables."""


def personal_equals_global(rounds: Iterable[Mapping[str, Any]]) -> bool:
    """Whether devices have no models of their own: every personal score equals the global one of its round.

    rounds: rows of `rounds`. False where no personal score is logged.
    """
    names = ("accuracy", "metric", "loss")
    pairs = [(row[f"personal_{name}"], row[f"global_{name}"]) for row in rounds for name in names]
    known = [(own, shared) for own, shared in pairs if own is not None]
    return bool(known) and all(shared is not None and abs(own - shared) < SAME for own, shared in known)


def score_column(metric: str | None) -> str:
    """The name, after `global_` or `personal_`, of the column that a run is judged by. metric: the task's own."""
    return "accuracy" if metric in (None, "accuracy") else "metric"


def anchors_in(column: str, anchors: Mapping[str, float]) -> dict[str, float]:
    """The baselines that belong beside a score, by name. column: what `score_column` returns.

    anchors: `anchors` of RUN/summary.json.
    """
    if column == "accuracy":
        return {name: value for name, value in anchors.items() if not name.endswith(OWN_METRIC)}
    return {name.removesuffix(OWN_METRIC): value for name, value in anchors.items() if name not in ACCURACIES}
