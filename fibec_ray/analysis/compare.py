"""`fibec-ray compare`: the tables of a paper from finished runs, as Markdown, CSV and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fibec_ray.analysis import compare_tables as tables
from fibec_ray.analysis import formats
from fibec_ray.analysis.comparable import refuse_incomparable
from fibec_ray.analysis.comparison import comparison_of, judged_by
from fibec_ray.analysis.files import replace_file
from fibec_ray.analysis.formats import Table
from fibec_ray.analysis.numbers import Model, Pick
from fibec_ray.analysis.scores import RECENT
from fibec_ray.analysis.targets import default_target, target_rows
from fibec_ray.analysis.variants import Collection, collect

FORMATS: dict[str, Callable[[Table, int | None], str]] = {
    "markdown": formats.markdown,
    "csv": lambda table, width: formats.as_csv(table),
    "latex": lambda table, width: formats.latex(table),
}


@dataclass(frozen=True)
class Choices:
    """Options of `fibec-ray compare`."""

    reference: str | None = None
    """name of the variant to compare with; None: the sweep's reference, or the first variant"""
    targets: tuple[float, ...] = ()
    """scores to reach; empty: 95 % of the reference's best score"""
    model: Model | None = None
    """which score to compare; None: the personal one if there is one"""
    recent: int = RECENT
    """number of last evaluations that a final score averages"""
    anyway: bool = False
    """compare runs of different data, partition or model"""
    pick: Pick = "last"
    """which scores to compare: final (last) or best"""


def compare_runs(places: Sequence[str | Path], choices: Choices) -> list[Table]:
    """Make every table that the runs have numbers for. Raises UserError for runs that are not comparable."""
    return compare_collection(collect(places), choices)


def compare_collection(collection: Collection, choices: Choices) -> list[Table]:
    """Every table that grouped runs have numbers for. Raises UserError for runs that are not comparable."""
    if not choices.anyway:
        refuse_incomparable(collection)
    comparison = comparison_of(collection, choices.recent, choices.reference, choices.pick)
    model = choices.model or judged_by(comparison)
    targets = choices.targets or default_target(comparison, model)
    found = [
        tables.scores(comparison, model),
        *(tables.targets(comparison, model, target, target_rows(comparison, model, target)) for target in targets),
        tables.devices(comparison),
        tables.speed_classes(comparison),
        tables.costs(comparison),
    ]
    return [table for table in found if table.rows]


def written(found: Sequence[Table], style: str, width: int | None = None) -> str:
    """Format the tables one after the other. style: a key of FORMATS. width: characters in a terminal line."""
    return "\n".join(FORMATS[style](table, width) for table in found)


def write_all(found: Sequence[Table], folder: Path, name: str = "compare") -> list[Path]:
    """Write NAME.md, NAME.tex and one CSV per table; returns their paths."""
    files = {folder / f"{name}.md": written(found, "markdown"), folder / f"{name}.tex": written(found, "latex")}
    files |= {folder / f"{table.stem}.csv": formats.as_csv(table) for table in found}
    for path, text in files.items():
        replace_file(path, text.encode())
    return list(files)
