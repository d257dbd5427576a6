"""Writes the comparison of a sweep's runs as DIR/table.md and DIR/table.csv."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from fibec_ray.analysis.compare_tables import cost_text
from fibec_ray.analysis.comparison import Comparison, Line, compare
from fibec_ray.analysis.files import replace_file
from fibec_ray.analysis.formats import NONE, Column, Row, Table, as_csv, escaped, fitted, listed_notes
from fibec_ray.analysis.numbers import Pick
from fibec_ray.analysis.scores import RECENT
from fibec_ray.analysis.statistics import CONFIDENCE, Paired
from fibec_ray.analysis.units import Unit, unit_for

FLOP = (Unit("GFLOP", 1e9), Unit("TFLOP", 1e12), Unit("PFLOP", 1e15), Unit("EFLOP", 1e18))
ANCHORS = {
    "majority": "the majority class",
    "own_majority": "each device's own majority class",
    "mean": "the mean",
    "own_mean": "each device's own mean",
    "chance": "chance",
}
COSTS = {
    "bytes": "num_bytes", "samples": "num_samples", "flop": "flops", "sim_time_s": "sim_time_s",
    "wall_time_s": "wall_time_s",
}  # fmt: skip
"""Columns of the CSV, and what the analysis calls them."""
FIRST_SCORE = 2
"""Column of the personal score; the global one comes next."""


def write_table(sweep_dir: Path, recent: int = RECENT, width: int | None = None, pick: Pick = "last") -> str:
    """Write both files from the finished runs. Returns the table for a terminal of this width (characters)."""
    comparison = compare(sweep_dir, recent, pick)
    rows = tuple(_row(comparison, line) for line in comparison.lines)
    replace_file(sweep_dir / "table.csv", as_csv(Table("table", "", (), rows)).encode())
    replace_file(sweep_dir / "table.md", markdown(comparison).encode())
    return markdown(comparison, width)


def markdown(comparison: Comparison, width: int | None = None) -> str:
    """The table as Markdown. width: characters of the terminal; None: as wide as the table is."""
    unit = unit_for(max((line.number("flops") or 0.0 for line in comparison.lines), default=0.0), FLOP)
    head = [
        "variant", "seeds", "personal", "global", f"personal − {escaped(comparison.reference)}", "matters?", "MB sent",
        "samples", unit.name, "simulated s", "real s",
    ]  # fmt: skip
    rows = [head]
    cells = _with_best(comparison, [_cells(comparison, line, unit) for line in comparison.lines])
    by_group = sorted(zip(comparison.lines, cells, strict=True), key=lambda each: bool(each[0].group))  # '' first
    for group, each in groupby(by_group, key=lambda each: each[0].group):
        if group:
            rows.append([f"**{escaped(group)}**", *[""] * (len(head) - 1)])
        rows.extend(row for _, row in each)
    return f"# Sweep {escaped(comparison.name)}\n\n{fitted(rows, width)}\n{listed_notes(_notes(comparison), width)}"


def _cells(comparison: Comparison, line: Line, unit: Unit) -> list[str]:
    units = {"num_bytes": 1e6, "flops": unit.size}
    paired, is_reference = _paired(comparison, line), line.variant == comparison.reference
    return [
        escaped(line.variant),
        str(line.num_seeds),
        _score(comparison.score_of(line, "personal")),
        _score(comparison.score_of(line, "global")),
        "reference" if is_reference else _difference(paired),
        "" if is_reference else _matters(paired),
        *(cost_text(line.number(name), units.get(name, 1.0)) for name in COSTS.values()),
    ]


def _with_best(comparison: Comparison, cells: list[list[str]]) -> list[list[str]]:
    """The rows with the best personal and the best global score in bold."""
    names = (f"personal_{comparison.score}", f"global_{comparison.score}")
    columns = tuple(Column(name, lambda row, name=name: _score(row[name]), name) for name in names)  # type: ignore[misc]
    rows = tuple(_row(comparison, line) for line in comparison.lines)
    for row, at in Table("", "", columns, rows).best():
        cells[row][FIRST_SCORE + at] = f"**{cells[row][FIRST_SCORE + at]}**"
    return cells


def _notes(comparison: Comparison) -> list[str]:
    what = "Accuracies are fractions" if comparison.score == "accuracy" else f"Scores are {comparison.score}"
    notes = [
        f"Means over seeds, {comparison.num_seeds} where the sweep is complete. {what}: {_picked(comparison)}. The "
        "best are in bold.",
        f"The difference is paired: runs of one seed share partition, cohorts and initial weights. ± is half of the "
        f"{CONFIDENCE:.0%} confidence interval of its mean (Student's t over seeds).",
        "matters? yes: that interval excludes 0; no: it does not; ?: fewer than two seeds in common. One in twenty "
        "changes without any effect still gets a yes.",
        "Costs are totals of a run, setup included.",
    ]
    if comparison.anchors:
        found = [f"{value:.4f} {ANCHORS.get(name, name)}" for name, value in comparison.anchors.items()]
        notes.append(f"{comparison.score.capitalize()} without learning, on the reference's data: {', '.join(found)}.")
    return notes


def _picked(comparison: Comparison) -> str:
    if comparison.pick == "best":
        return "the highest evaluation of a run, which favours runs that were evaluated often"
    return f"the mean of the last {comparison.recent} evaluations of a run"


def _paired(comparison: Comparison, line: Line) -> Paired | None:
    return comparison.difference(line, "personal")


def _difference(paired: Paired | None) -> str:
    if paired is None:
        return NONE
    return f"{paired.mean:+z.4f}" + ("" if paired.half_width is None else f" ± {paired.half_width:.4f}")


def _matters(paired: Paired | None) -> str:
    matters = paired.matters if paired else None
    return "?" if matters is None else "yes" if matters else "no"


def _score(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _row(comparison: Comparison, line: Line) -> Row:
    """Plain units (B, FLOP, s). difference: of the personal score to the reference, paired by seed; half_width: of its
    95 % confidence interval."""
    paired = _paired(comparison, line)
    return {
        "group": line.group,
        "variant": line.variant,
        "seeds": line.num_seeds,
        f"personal_{comparison.score}": comparison.score_of(line, "personal"),
        f"global_{comparison.score}": comparison.score_of(line, "global"),
        "difference": paired and paired.mean,
        "half_width": paired and paired.half_width,
        "pairs": paired and paired.num_pairs,
        "matters": "" if line.variant == comparison.reference else _matters(paired),
        **{column: line.number(name) for column, name in COSTS.items()},
    }
