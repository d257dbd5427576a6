"""`fibec-ray paper-table`: scores, time to a target, and how far the reference is ahead of each baseline.

FibecFed's paper reports these quantities: accuracy, simulated time until a target accuracy, and how much sooner the
reference reaches it, in percent of the baseline's time: 100 (1 - t_reference / t_baseline).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from fibec_ray.analysis.compare_tables import cost_text
from fibec_ray.analysis.comparison import Line
from fibec_ray.analysis.figure import Curve, Series
from fibec_ray.analysis.formats import NONE, Column, Row, Table
from fibec_ray.analysis.settings import Choices, Setting
from fibec_ray.analysis.sweep_table import ANCHORS as UNTRAINED

POINTS = 100
"""Scores are shown in percent, and their differences in percentage points."""


@dataclass(frozen=True)
class Cell:
    """One variant in one setting. Means over seeds; None where a value is unknown."""

    score: float | None
    """in %"""
    ahead: float | None
    """score of the reference minus this one's, in points; paired by seed"""
    ahead_half_width: float | None
    """of the 95 % interval of `ahead`; None for a single seed"""
    time_s: float | None
    """simulated s until the target score, over the seeds that reach it"""
    faster: float | None
    """how much sooner the reference reaches the target, in % of this variant's time; negative if it is later"""
    at_least: bool
    """the variant never reached the target, so `faster` is a lower bound, computed from the time of its whole run"""
    num_reached: int = 0
    """seeds that reach the target"""
    num_seeds: int = 0


def cell_of(setting: Setting, line: Line, choices: Choices) -> Cell:
    """Compare one variant with the reference of its setting."""
    comparison, model = setting.comparison, setting.model
    score, paired = comparison.score_of(line, model), comparison.difference(line, model)
    times, ends = _times(setting, line, choices)
    of_reference, _ = _times(setting, comparison.line(comparison.reference), choices)
    faster = None if line.variant == comparison.reference else _faster(of_reference, times or ends)
    if not times and faster is not None and faster <= 0:
        faster = None  # the run ended before the reference reached the target, so there is no lower bound
    return Cell(
        score=None if score is None else POINTS * score,
        ahead=-POINTS * paired.mean if paired else None,
        ahead_half_width=POINTS * paired.half_width if paired and paired.half_width is not None else None,
        time_s=fmean(times.values()) if times else None,
        faster=faster,
        at_least=not times,
        num_reached=len(times),
        num_seeds=len(line.runs),
    )


def _times(setting: Setting, line: Line, choices: Choices) -> tuple[dict[int, float], dict[int, float]]:
    """Times by seed: until the target, for seeds that reach it; and until the last evaluation, for all seeds."""
    if setting.target is None:
        return {}, {}
    found = {seed: run.reached(setting.model, setting.target) for seed, run in line.runs.items()}
    reached = {seed: choices.time_of(each) for seed, each in found.items() if each is not None}
    return reached, {seed: choices.time_of(run.evaluated[-1]) for seed, run in line.runs.items() if run.evaluated}


def _faster(reference: dict[int, float], other: dict[int, float]) -> float | None:
    """Compare total times over the seeds that both have. None if there are none, or if the other needs no time."""
    common = reference.keys() & other.keys()
    ours, theirs = (sum(times[seed] for seed in common) for times in (reference, other))
    return POINTS * (1 - ours / theirs) if theirs > 0 else None


def paper_tables(settings: Sequence[Setting], choices: Choices) -> list[Table]:
    """Make one table for a single setting. Several settings get a table per quantity, with a column per setting."""
    variants = list(dict.fromkeys(line.variant for setting in settings for line in setting.comparison.lines))
    cells = {
        (setting.name, line.variant): cell_of(setting, line, choices)
        for setting in settings
        for line in setting.comparison.lines
    }
    rows = tuple(_row(variant, settings, cells) for variant in variants)
    several, notes = len(settings) > 1, tuple(_notes(settings, cells, choices))
    quantities = [(stem, title, make) for stem, title, make in _QUANTITIES]
    if not several:
        (only,) = settings
        columns = [make(only.name, title.format(score=only.comparison.score)) for _, title, make in quantities]
        return [Table("paper", only.title, (_VARIANT, *columns), rows, notes)]
    tables = []
    for stem, title, make in quantities:
        columns = [make(setting.name, setting.title) for setting in settings]
        last = stem == quantities[-1][0]
        heading = title.format(score="score").capitalize()
        tables.append(Table(f"paper-{stem}", heading, (_VARIANT, *columns), rows, notes if last else ()))
    return tables


def _row(variant: str, settings: Sequence[Setting], cells: dict[tuple[str, str], Cell]) -> Row:
    row: dict[str, Any] = {"variant": variant}
    for setting in settings:
        cell = cells.get((setting.name, variant), Cell(None, None, None, None, None, False))
        row |= {f"{setting.name}_{name}": value for name, value in vars(cell).items()}
    return row


_VARIANT = Column("variant", lambda row: str(row["variant"]))


def _score(name: str, title: str) -> Column:
    return Column(title, lambda row: _text(row[f"{name}_score"], "{:.2f}"), f"{name}_score")


def _ahead(name: str, title: str) -> Column:
    def text(row: Row) -> str:
        interval = row[f"{name}_ahead_half_width"]
        return _text(row[f"{name}_ahead"], "{:+z.2f}") + ("" if interval is None else f" ± {interval:.2f}")

    return Column(title, text)


def _time(name: str, title: str) -> Column:
    def text(row: Row) -> str:
        reached, seeds = row[f"{name}_num_reached"], row[f"{name}_num_seeds"]
        some = f" ({reached} of {seeds})" if 0 < reached < seeds else ""
        return cost_text(row[f"{name}_time_s"]) + some

    return Column(title, text, f"{name}_time_s", bigger_is_better=False)


def _sooner(name: str, title: str) -> Column:
    def text(row: Row) -> str:
        found = _text(row[f"{name}_faster"], "{:z.2f} %")
        return f"> {found}" if row[f"{name}_at_least"] and found != NONE else found

    return Column(title, text)


_QUANTITIES: tuple[tuple[str, str, Callable[[str, str], Column]], ...] = (
    ("score", "{score}, %", _score),
    ("ahead", "reference ahead, points", _ahead),
    ("time", "seconds to target", _time),
    ("faster", "reference faster", _sooner),
)


def _text(value: float | None, form: str) -> str:
    return NONE if value is None else form.format(value)


def _notes(settings: Sequence[Setting], cells: dict[tuple[str, str], Cell], choices: Choices) -> Iterator[str]:
    references = list(dict.fromkeys(setting.comparison.reference for setting in settings))
    yield f"Reference: {', '.join(references)}. Means over seeds: {_seeds(settings)}."
    which = "the highest evaluation of a run" if choices.pick == "best" else "the mean of a run's last evaluations"
    models = {setting.model for setting in settings}
    what = "each device's own model on its own test data" if models == {"personal"} else "the global model"
    yield f"Score: {which}, {what if len(models) == 1 else 'of the personal models, or of the global one'}."
    if any(cell.ahead_half_width is not None for cell in cells.values()):
        yield "Ahead: paired by seed. ± is half of the 95 % interval (Student's t over seeds)."
    targets = ", ".join(f"{setting.name} {setting.target:g}" for setting in settings if setting.target is not None)
    setup = "with" if choices.with_setup else "without"
    if targets:
        yield f"Time: simulated s, {setup} the initialisation phase, until the score reaches {targets}."
        if any(0 < cell.num_reached < cell.num_seeds for cell in cells.values()):
            yield "(1 of 3): only one of three seeds reached the target, and the time is that seed's."
    for setting in settings:
        if setting.target is not None and (untrained := setting.without_learning) and untrained[1] >= setting.target:
            yield (
                f"{setting.name}: {UNTRAINED.get(untrained[0], untrained[0])} reaches {untrained[1]:.4f} without "
                f"learning, so times until {setting.target:g} say little. --target sets a higher score."
            )
    yield (
        "Faster: 100 (1 - t_reference / t_variant). Negative: the variant is faster. >: the variant never reached the "
        "target, so this is a lower bound from the time of its whole run."
    )
    yield from _extremes(cells)


def _seeds(settings: Sequence[Setting]) -> str:
    counts = sorted({line.num_seeds for setting in settings for line in setting.comparison.lines})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _extremes(cells: dict[tuple[str, str], Cell]) -> Iterator[str]:
    """The largest and the smallest lead. Papers often state only the largest, as `up to`."""
    for name, unit in (("ahead", "points"), ("faster", "%")):
        known = {key: value for key, cell in cells.items() if (value := getattr(cell, name)) is not None}
        bounds = {key for key in known if name == "faster" and cells[key].at_least}
        if known:
            most = max(known, key=lambda key: known[key])
            up_to = f"{'more than ' if most in bounds else ''}{known[most]:.2f} {unit} ({most[1]}, {most[0]})"
            exact = [key for key in known if key not in bounds]
            least = min(exact, key=lambda key: known[key], default=None)
            at_worst = f", at worst {known[least]:.2f} {unit} ({least[1]}, {least[0]})" if least else ""
            yield f"{name.capitalize()}: up to {up_to}{at_worst}."


def paper_curves(settings: Sequence[Setting], choices: Choices) -> list[Curve]:
    """Make a figure of score against simulated time for each setting, with one line per variant; means over seeds."""
    return [_curve(setting, choices) for setting in settings]


def _curve(setting: Setting, choices: Choices) -> Curve:
    series = tuple(
        Series(line.variant, points)
        for line in setting.comparison.lines
        if (points := tuple(_points(setting, line, choices)))
    )
    caption = "Means over seeds at each evaluated round."
    return Curve(setting.name, setting.title, caption, "simulated s", setting.comparison.score, series)


def _points(setting: Setting, line: Line, choices: Choices) -> Iterator[tuple[float, float]]:
    """Yield (time, score) at the rounds that all seeds evaluated, means over seeds."""
    runs = [{each.rounds: each for each in run.evaluated} for run in line.runs.values()]
    for round_ in sorted(set[int].intersection(*map(set, runs))) if runs else ():
        scores = [run[round_].score(setting.model) for run in runs]
        known = [score for score in scores if score is not None]
        if len(known) == len(runs):
            yield fmean(choices.time_of(run[round_]) for run in runs), fmean(known)
