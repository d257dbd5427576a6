"""Writes the comparison of a sweep's runs as DIR/table.md and DIR/table.csv."""

from __future__ import annotations

import csv
import io
from itertools import groupby
from pathlib import Path

from fibec_ray.analysis.compare_tables import cost_text
from fibec_ray.analysis.comparison import Comparison, Line, compare
from fibec_ray.analysis.files import replace_file
from fibec_ray.analysis.formats import NONE, escaped, fitted, listed_notes, spreadsheet_cell
from fibec_ray.analysis.scores import RECENT
from fibec_ray.analysis.statistics import CONFIDENCE
from fibec_ray.analysis.units import Unit, unit_for

FLOP = (Unit("GFLOP", 1e9), Unit("TFLOP", 1e12), Unit("PFLOP", 1e15), Unit("EFLOP", 1e18))
ANCHORS = {
    "majority": "the majority class",
    "own_majority": "each device's own majority class",
    "mean": "the mean",
    "own_mean": "each device's own mean",
}
COSTS = ("num_bytes", "num_samples", "flops", "sim_time_s", "wall_time_s")
CSV_COLUMNS = (
    "group", "variant", "seeds", "personal_{score}", "global_{score}", "difference", "half_width", "pairs", "matters",
    "bytes", "samples", "flop", "sim_time_s", "wall_time_s",
)  # fmt: skip
"""score: accuracy or r2. difference: of the personal score to the reference, paired by seed; half_width: of its 95 %
confidence interval."""


def write_table(sweep_dir: Path, recent: int = RECENT, width: int | None = None) -> str:
    """Writes both files from the runs that have finished so far. Returns the table, for a terminal of this width."""
    comparison = compare(sweep_dir, recent)
    replace_file(sweep_dir / "table.csv", _csv(comparison).encode())
    replace_file(sweep_dir / "table.md", markdown(comparison).encode())
    return markdown(comparison, width)


def markdown(comparison: Comparison, width: int | None = None) -> str:
    unit = unit_for(max((line.number("flops") or 0.0 for line in comparison.lines), default=0.0), FLOP)
    head = [
        "variant", "seeds", "personal", "global", f"personal − {escaped(comparison.reference)}", "matters?", "MB sent",
        "samples", unit.name, "simulated s", "real s",
    ]  # fmt: skip
    rows = [head]
    lines_by_group = sorted(comparison.lines, key=lambda line: bool(line.group))  # variants without a group first
    for group, lines in groupby(lines_by_group, key=lambda line: line.group):
        if group:
            rows.append([f"**{escaped(group)}**", *[""] * (len(head) - 1)])
        rows.extend(_cells(line, comparison.reference, unit) for line in lines)
    return f"# Sweep {escaped(comparison.name)}\n\n{fitted(rows, width)}\n{listed_notes(_notes(comparison), width)}"


def _cells(line: Line, reference: str, unit: Unit) -> list[str]:
    units = {"num_bytes": 1e6, "flops": unit.size}
    return [
        escaped(line.variant),
        str(line.num_seeds),
        _score(line.number("personal")),
        _score(line.number("shared")),
        "reference" if line.variant == reference else _difference(line),
        "" if line.variant == reference else _matters(line),
        *(cost_text(line.number(name), units.get(name, 1.0)) for name in COSTS),
    ]


def _notes(comparison: Comparison) -> list[str]:
    what = "Accuracies are fractions" if comparison.score == "accuracy" else f"Scores are {comparison.score}"
    notes = [
        f"Means over seeds, {comparison.num_seeds} where the sweep is complete. {what}: the mean of the last "
        f"{comparison.recent} evaluations of a run.",
        f"The difference is paired: runs of one seed share partition, cohorts and initial weights. ± is half of the "
        f"{CONFIDENCE:.0%} confidence interval of its mean (Student's t over seeds).",
        "matters? yes: that interval excludes 0; no: it does not; ?: fewer than two seeds in common. Of changes that "
        "make no difference one in twenty says yes all the same.",
        "Costs are totals of a run, the initialisation phase included.",
    ]
    if comparison.anchors:
        found = [f"{value:.4f} {ANCHORS.get(name, name)}" for name, value in comparison.anchors.items()]
        notes.append(f"{comparison.score.capitalize()} without learning, on the reference's data: {', '.join(found)}.")
    return notes


def _difference(line: Line) -> str:
    if line.paired is None:
        return NONE
    half_width = line.paired.half_width
    return f"{line.paired.mean:+.4f}" + ("" if half_width is None else f" ± {half_width:.4f}")


def _matters(line: Line) -> str:
    matters = line.paired.matters if line.paired else None
    return "?" if matters is None else "yes" if matters else "no"


def _score(value: float | None) -> str:
    return NONE if value is None else f"{value:.4f}"


def _csv(comparison: Comparison) -> str:
    """Plain units (B, FLOP, s), all digits; empty where unknown."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.format(score=comparison.score) for column in CSV_COLUMNS])
    for line in comparison.lines:
        is_reference = line.variant == comparison.reference
        paired = line.paired
        cells = [
            line.group, line.variant, line.num_seeds, line.number("personal"), line.number("shared"),
            paired and paired.mean, paired and paired.half_width, paired.num_pairs if paired else "",
            "" if is_reference else _matters(line),
            *map(line.number, COSTS),
        ]  # fmt: skip
        writer.writerow(map(spreadsheet_cell, cells))
    return out.getvalue()
