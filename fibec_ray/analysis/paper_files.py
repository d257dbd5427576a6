"""Makes the tables of `fibec-ray paper-table`, and writes them with their figure. Called by two commands."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fibec_ray.analysis.compare import write_all, written
from fibec_ray.analysis.files import replace_file
from fibec_ray.analysis.paper_table import paper_curves, paper_tables
from fibec_ray.analysis.settings import Choices, settings_of


def paper_files(
    places: Sequence[str | Path],
    choices: Choices,
    folder: Path | None = None,
    style: str = "markdown",
    width: int | None = None,
) -> str:
    """Return the tables as text. With a folder, also write paper.md, paper.tex, CSV files and paper.pdf, .svg and .png.

    style: markdown, csv or latex. width: characters in a terminal line. Raises UserError.
    """
    settings = settings_of(places, choices)
    tables = paper_tables(settings, choices)
    if folder:
        from fibec_ray.analysis.panels import draw_panels  # matplotlib takes a second to load

        write_all(tables, folder, "paper")
        for ending, content in draw_panels(paper_curves(settings, choices), "Score against time").items():
            replace_file(folder / f"paper.{ending}", content)
    return written(tables, style, width)
