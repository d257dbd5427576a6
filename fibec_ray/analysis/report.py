"""`fibec-ray report`: one self-contained page for a run, or for several side by side, and figures for a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fibec_ray.analysis.comparable import differences
from fibec_ray.analysis.compare import Choices, compare_collection
from fibec_ray.analysis.files import replace_file
from fibec_ray.analysis.log import RunLog
from fibec_ray.analysis.overlay import overlay_cards
from fibec_ray.analysis.page import Page, render, size_of
from fibec_ray.analysis.paper import refuse_file, write_figures
from fibec_ray.analysis.paper_style import Style
from fibec_ray.analysis.run_page import RunPage, Section, run_page
from fibec_ray.analysis.tables import RunTables
from fibec_ray.analysis.variants import Collection, collect
from fibec_ray.errors import RunDirError

MAX_DETAILS = 2_200_000
"""most bytes of single runs' figures on a page of several runs"""

Read = Mapping[str, Mapping[int, tuple[RunLog, RunTables]]]
"""By variant and seed."""


def write_report(
    places: Sequence[str | Path],
    out: Path | None = None,
    figures: Path | None = None,
    style: Style | None = None,
    only: Sequence[str] = (),
    each_run: bool = False,
) -> Path:
    """Write the page and return its path. Works while a run is still going.

    out: by default RUN/report.html of a single run or sweep on this machine, else report.html.
    figures: a folder for paper figures (none by default), drawn in the style; only and each_run choose among them, see
    `paper.write_figures`. Raises RunDirError, and UserError for a figure that is not there.
    """
    collection = collect(places)
    read = {
        variant.name: {seed: (log, RunTables.read(log)) for seed, log in variant.runs.items()}
        for variant in collection.variants
    }
    page = _page(collection, read)
    if figures:
        refuse_file(figures)
        write_figures(page, figures, style or Style(), only, each_run)
    path = out or _default_path(places)
    replace_file(path, render(page).encode())
    return path


def _page(collection: Collection, read: Read) -> Page:
    runs = [(name, seed, *found) for name, seeds in read.items() for seed, found in seeds.items()]
    if not runs:
        raise RunDirError(f"{collection.name}: no run has finished yet")
    if len(runs) == 1:
        alone = run_page(runs[0][2], runs[0][3])
        return Page(alone.title, (), (), (alone,))
    pages = [run_page(log, tables, f"{name}, seed {seed}") for name, seed, log, tables in runs]
    shown = _that_fit(pages)
    left_out = len(pages) - len(shown)
    notices = [f"These runs differ in more than their method: {line}." for line in differences(collection)]
    if left_out:
        notices.append(f"{left_out} runs are in the comparison only; `fibec-ray report RUN` shows one by itself.")
    return Page(
        f"{collection.name}: {len(runs)} runs",
        tuple(notices),
        tuple(_overview(collection, read)),
        shown,
        _common(pages),
    )


def _common(pages: Sequence[RunPage]) -> tuple[tuple[str, str], ...]:
    """The facts that all runs share."""
    return tuple(fact for fact in pages[0].facts if all(fact in page.facts for page in pages))


def _overview(collection: Collection, read: Read) -> list[Section]:
    tables = {name: [tables for _, tables in seeds.values()] for name, seeds in read.items() if seeds}
    metric = next((log.fact("metric") for seeds in read.values() for log, _ in seeds.values()), None)
    compared = compare_collection(collection, Choices(anyway=True))
    return [
        Section("Curves", (), tuple(overlay_cards(tables, metric))),
        Section("Comparison", tuple(compared), ()),
    ]


def _that_fit(pages: Sequence[RunPage]) -> tuple[RunPage, ...]:
    """The first runs, as many as MAX_DETAILS allows; at least one."""
    shown: list[RunPage] = []
    total = 0
    for page in pages:
        total += size_of(page)
        if shown and total > MAX_DETAILS:
            break
        shown.append(page)
    return tuple(shown)


def _default_path(places: Sequence[str | Path]) -> Path:
    folder = Path(places[0])
    return folder / "report.html" if len(places) == 1 and folder.is_dir() else Path("report.html")
