"""Groups runs by setting, such as by task, so that `fibec-ray paper-table` shows several comparisons in one table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fibec_ray.analysis.comparable import refuse_incomparable
from fibec_ray.analysis.comparison import Comparison, comparison_of, judged_by
from fibec_ray.analysis.numbers import Evaluated, Model, Pick
from fibec_ray.analysis.places import Place, place
from fibec_ray.analysis.scores import RECENT
from fibec_ray.analysis.targets import default_target
from fibec_ray.analysis.variants import Collection, collect, is_sweep, sweep
from fibec_ray.errors import RunDirError, UserError, did_you_mean


@dataclass(frozen=True)
class Choices:
    """Options of `fibec-ray paper-table`."""

    reference: str | None = None
    """name of the variant to compare with; None: each sweep's own, or the first variant"""
    only: tuple[str, ...] = ()
    """variants to show beside the reference; empty: all"""
    target: float | None = None
    """score to reach; None: 95 % of the reference's best score"""
    model: Model | None = None
    """which score to compare; None: the personal one if there is one"""
    pick: Pick = "best"
    """which scores to compare: best, or the mean of the last ones"""
    with_setup: bool = False
    """include the time of the initialisation phase"""

    def time_of(self, evaluated: Evaluated) -> float:
        """Return the simulated s until an evaluation."""
        return evaluated.sim_time_s if self.with_setup else evaluated.training_time_s


@dataclass(frozen=True)
class Setting:
    """Variants compared in one setting: one task, or one sweep."""

    name: str
    comparison: Comparison
    model: Model
    target: float | None
    """None where the reference has no positive score"""

    @property
    def title(self) -> str:
        """The name, followed by the metric if it is not accuracy."""
        score = self.comparison.score
        return self.name if score == "accuracy" else f"{self.name} ({score})"

    @property
    def without_learning(self) -> tuple[str, float] | None:
        """The baseline that needs no model, by name, and its mean score. None if the runs know none."""
        own = self.model == "personal"
        known = [each for each in self.comparison.anchors.items() if own or not each[0].startswith("own_")]
        return max(known, key=lambda each: each[1], default=None)


def settings_of(places: Sequence[str | Path], choices: Choices) -> list[Setting]:
    """Make a setting of each sweep, and one more of all run directories together.

    A folder may also hold several sweeps, such as the tasks of one `fibec-ray sweep`. Settings are named after their
    tasks if these differ, else after their folders. Raises UserError.
    """
    found, runs = list[tuple[Place, Collection]](), list[str]()
    for where in map(place, places):
        sweeps = [where] if is_sweep(where) else [below for name in where.folders() if is_sweep(below := where / name)]
        found += [(each, sweep(each)) for each in sweeps]
        runs += [] if sweeps else [where.shown]
    found = [(at, collection) for at, collection in found if any(each.runs for each in collection.variants)]
    if runs:
        alone = collect(runs)
        refuse_incomparable(alone)
        found.append((place(runs[0]), alone))
    if not found:
        raise RunDirError(f"{', '.join(map(str, places))}: no sweep here has a finished run yet")
    _refuse_unknown(choices.only, [variant.name for _, collection in found for variant in collection.variants])
    return [_setting(name, collection, choices) for name, (_, collection) in zip(_names(found), found, strict=True)]


def _names(found: Sequence[tuple[Place, Collection]]) -> list[str]:
    """A name for each setting, the shortest that differ: tasks, folders, or whole paths."""
    tasks = [_task_of(collection) for _, collection in found]
    for names in (tasks, [at.name for at, _ in found], [at.shown for at, _ in found]):
        if len(set(names)) == len(found):
            return names
    raise UserError("the same sweep is named twice; name each sweep once")


def _task_of(runs: Collection) -> str:
    first = next(log for variant in runs.variants for log in variant.runs.values())
    return str(first.fact("task") or first.config["task"]["name"])


def _setting(name: str, runs: Collection, choices: Choices) -> Setting:
    comparison = comparison_of(_shown(runs, choices), RECENT, choices.reference, choices.pick)
    model = choices.model or judged_by(comparison)
    targets = (choices.target,) if choices.target is not None else default_target(comparison, model)
    return Setting(name, comparison, model, targets[0] if targets else None)


def _refuse_unknown(only: Sequence[str], known: Sequence[str]) -> None:
    for name in only:
        if name not in known:
            raise UserError(f"--only {name}: no such variant here; {did_you_mean(name, dict.fromkeys(known))}")


def _shown(runs: Collection, choices: Choices) -> Collection:
    """Keep the reference, and the variants to show that have a finished run."""
    reference = choices.reference or runs.reference or runs.variants[0].name
    variants = tuple(
        variant
        for variant in runs.variants
        if variant.name == reference or (variant.runs and (not choices.only or variant.name in choices.only))
    )
    return Collection(runs.name, variants, runs.reference, runs.num_seeds)
