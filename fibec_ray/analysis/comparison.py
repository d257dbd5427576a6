"""Compares variants over seeds: means, and differences to the reference, paired by seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from statistics import fmean

from fibec_ray.analysis.numbers import Model, Pick, RunNumbers, numbers_of
from fibec_ray.analysis.places import place
from fibec_ray.analysis.scores import RECENT
from fibec_ray.analysis.statistics import Mean, Paired
from fibec_ray.analysis.variants import Collection, sweep
from fibec_ray.errors import RunDirError, UserError, did_you_mean


@dataclass(frozen=True)
class Line:
    """One variant, as means over its finished seeds; None where it has none."""

    group: str
    variant: str
    runs: Mapping[int, RunNumbers]
    """by seed"""

    @property
    def num_seeds(self) -> int:
        """Number of seeds with a finished run."""
        return len(self.runs)

    def number(self, name: str) -> float | None:
        """Mean of a field of `RunNumbers` over seeds: a score or a total cost."""
        return self.mean(attrgetter(name))

    def over_seeds(self, value: Callable[[RunNumbers], float | None]) -> Mean | None:
        """Mean and interval over the seeds that have the number."""
        return Mean.of([number for run in self.runs.values() if (number := value(run)) is not None])

    def mean(self, value: Callable[[RunNumbers], float | None]) -> float | None:
        """Mean over seeds; None if no run has the value."""
        found = self.over_seeds(value)
        return found.value if found else None


@dataclass(frozen=True)
class Comparison:
    """Variants to compare, with the numbers of their runs."""

    name: str
    reference: str
    recent: int
    """number of last evaluations that a final score averages"""
    num_seeds: int
    """seeds of the sweep; a line has fewer while the sweep is running"""
    score: str
    """name of the compared score: accuracy or the task's own metric"""
    anchors: Mapping[str, float]
    """of the reference's runs, means over seeds"""
    lines: tuple[Line, ...]
    pick: Pick = "last"
    """which scores to compare: final (last) or best"""

    def line(self, variant: str) -> Line:
        """The line of a variant."""
        return next(line for line in self.lines if line.variant == variant)

    def score_of(self, line: Line, model: Model) -> float | None:
        """The score of a variant that is compared, mean over seeds."""
        return line.mean(lambda run: run.picked(model, self.pick))

    def difference(self, line: Line, model: Model) -> Paired | None:
        """Difference of the compared score to the reference's; see `paired`."""
        return self.paired(line, lambda run: run.picked(model, self.pick))

    def paired(self, line: Line, value: Callable[[RunNumbers], float | None]) -> Paired | None:
        """Difference to the reference, seed by seed where both have the value; None for the reference itself."""
        if line.variant == self.reference:
            return None
        others = self.line(self.reference).runs
        pairs = [(value(run), value(others[seed])) for seed, run in line.runs.items() if seed in others]
        return Paired.of([own - other for own, other in pairs if own is not None and other is not None])


def compare(sweep_dir: Path, recent: int = RECENT, pick: Pick = "last") -> Comparison:
    """Compare the finished runs of a sweep's folder. Raises RunDirError."""
    return comparison_of(sweep(place(sweep_dir)), recent, pick=pick)


def comparison_of(
    collection: Collection, recent: int = RECENT, reference: str | None = None, pick: Pick = "last"
) -> Comparison:
    """Read all runs. reference: a variant's name; default: the sweep's, or the first. Raises UserError if unknown."""
    chosen = _reference(collection, reference)
    runs = {
        variant.name: {seed: numbers_of(log, recent) for seed, log in variant.runs.items()}
        for variant in collection.variants
    }
    anchors = [run.anchors for run in runs[chosen].values()]
    names = sorted(set[str]().union(*anchors))
    return Comparison(
        name=collection.name,
        reference=chosen,
        recent=recent,
        num_seeds=collection.num_seeds,
        score=next((run.score for each in (runs[chosen], *runs.values()) for run in each.values()), "accuracy"),
        anchors={name: fmean(found[name] for found in anchors if name in found) for name in names},
        lines=tuple(Line(variant.group, variant.name, runs[variant.name]) for variant in collection.variants),
        pick=pick,
    )


def judged_by(comparison: Comparison) -> Model:
    """The score to compare: personal if any run has one, else global."""
    runs = [run for line in comparison.lines for run in line.runs.values()]
    return "personal" if any(run.personal is not None for run in runs) else "global"


def _reference(collection: Collection, wanted: str | None) -> str:
    names = [variant.name for variant in collection.variants]
    if not names:
        raise RunDirError(f"{collection.name}: no variants to compare")
    chosen = wanted or collection.reference or names[0]
    if chosen not in names:
        raise UserError(f"no variant '{chosen}' to compare with; {did_you_mean(chosen, names)}")
    return chosen
