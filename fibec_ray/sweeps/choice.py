"""Chooses tuned values by the scores of finished tuning runs, and shows them. Called by tune.py."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fibec_ray.analysis.comparison import comparison_of, judged_by
from fibec_ray.analysis.formats import NONE, escaped, fitted, listed_notes
from fibec_ray.analysis.log import RunLog
from fibec_ray.analysis.numbers import Model
from fibec_ray.analysis.places import place
from fibec_ray.analysis.scores import RECENT
from fibec_ray.analysis.tables import RunTables
from fibec_ray.analysis.variants import Collection, Variant, sweep
from fibec_ray.sweeps.plan import Candidate, Tuning
from fibec_ray.sweeps.tuning import number_of

FAILED = "failed"


@dataclass(frozen=True)
class Choice:
    """What tuning found for one variant."""

    variant: str
    what: str
    """the score that decided, such as 'personal accuracy'"""
    tried: tuple[tuple[Candidate, float | None], ...]
    """candidates with their scores, the smallest values first; None: the run failed or its training diverged"""

    @property
    def chosen(self) -> Candidate | None:
        """The candidate with the highest score, of equal ones the first; None if all failed."""
        known = [(candidate, score) for candidate, score in self.tried if score is not None]
        return max(known, key=lambda each: each[1])[0] if known else None

    @property
    def at_edge(self) -> tuple[str, ...]:
        """Keys where the chosen value is the smallest or the largest number that was tried."""
        found = []
        for at, (key, text) in enumerate(self.chosen.values if self.chosen else ()):
            texts = {candidate.values[at][1] for candidate, _ in self.tried}
            numbers = [number for each in texts if (number := number_of(each)) is not None]
            if 1 < len(numbers) == len(texts) and number_of(text) in (min(numbers), max(numbers)):
                found.append(key)
        return tuple(found)


def choices_of(tuning: Tuning, folder: Path) -> dict[str, Choice]:
    """{tuned variant: its choice}, from the finished runs in the folder of tuning runs.

    A run's score is what `fibec-ray compare` shows: the mean of its last three evaluations, of personal models if any
    of the variant's runs has such scores.
    """
    runs = {variant.name: variant for variant in sweep(place(folder)).variants}
    return {
        name: _choice(name, candidates, [runs[candidate.variant.name] for candidate in candidates])
        for name, candidates in tuning.candidates.items()
    }


def _choice(name: str, candidates: Sequence[Candidate], runs: Sequence[Variant]) -> Choice:
    comparison = comparison_of(Collection(name, tuple(runs), None, 1))
    model = judged_by(comparison)
    scores = [
        None if _diverged(each, model) else comparison.score_of(comparison.line(each.name), model) for each in runs
    ]
    finite = [score if score is not None and math.isfinite(score) else None for score in scores]
    return Choice(name, f"{model} {comparison.score}", tuple(zip(candidates, finite, strict=True)))


def _diverged(runs: Variant, model: Model) -> bool:
    """Whether the loss of the last evaluation is not a finite number."""
    return not all(math.isfinite(loss) for log in runs.runs.values() for loss in _last_loss(log, model))


def _last_loss(log: RunLog, model: Model) -> list[float]:
    return [loss for _, loss in RunTables.read(log).points("round", f"{model}_loss")][-1:]


def table(choices: Sequence[Choice], takes: Mapping[str, str], seed: int, width: int | None = None) -> str:
    """A Markdown table of all choices. takes: {variant: another one whose choice it takes}."""
    rows = [["variant", "score", "scores of the values", "chosen", "note"], *map(_row, choices)]
    chosen = {choice.variant: _short(choice.chosen) for choice in choices}
    rows += [[escaped(name), "", "", chosen[other], f"as {escaped(other)}"] for name, other in takes.items()]
    notes = [
        f"Means of the last {RECENT} evaluations of the tuning runs, seed {seed}. The highest score decides; of equal "
        "ones the smallest value.",
        "edge: the best value is the smallest or the largest that was tried, so a better one may lie beyond it.",
        f"{FAILED}: the run failed or its training diverged.",
    ]
    return f"# Tuned values\n\n{fitted(rows, width, num_left=5)}\n{listed_notes(notes, width)}"


def _row(choice: Choice) -> list[str]:
    scores = ", ".join(f"{_short(candidate)}: {_shown(score)}" for candidate, score in choice.tried)
    note = f"edge: {', '.join(choice.at_edge)}" if choice.at_edge else ""
    return [escaped(choice.variant), choice.what, escaped(scores), escaped(_short(choice.chosen)), note]


def _short(candidate: Candidate | None) -> str:
    """'1e-2' for one tuned key, 'local.learning_rate=1e-2 local.epochs=2' for several."""
    if candidate is None:
        return NONE
    return candidate.values[0][1] if len(candidate.values) == 1 else " ".join(candidate.overrides)


def _shown(score: float | None) -> str:
    return FAILED if score is None else f"{score:.4f}"
