"""`fibec-ray report --figures DIR`: writes the figures of a page as files for a paper, only those that have changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from fibec_ray.analysis.cards import figures_of
from fibec_ray.analysis.figure import Figure
from fibec_ray.analysis.files import replace_file
from fibec_ray.analysis.page import Page, figure_data
from fibec_ray.analysis.paper_style import Style
from fibec_ray.analysis.run_page import Section
from fibec_ray.errors import RunDirError, UserError, did_you_mean

RECORD = "figures.json"
"""In each folder: the digest that every figure's files were made from."""
VERSION = 1
"""Raised when figures.py draws the same figure differently, so that old files are written again."""


def write_figures(
    page: Page, folder: Path, style: Style, only: Sequence[str] = (), each_run: bool = False
) -> list[Path]:
    """The files of the figures that were asked for, written or up to date.

    only: names of figures, with `*` and `?` as wildcards; empty: all. each_run: on a page of several runs, also the
    figures of every single run, in a folder each. Raises UserError for a name that no figure has.
    """
    chosen = list(_chosen(page, folder, only, each_run))
    return [path for where, figures in chosen for path in _write(where, figures, style)]


def figure_names(page: Page, each_run: bool = True) -> list[str]:
    """What `only` can name, sorted."""
    return sorted({figure.stem for _, figures in _groups(page, Path(), each_run) for figure in figures})


def _chosen(page: Page, folder: Path, only: Sequence[str], each_run: bool) -> Iterator[tuple[Path, list[Figure]]]:
    names = figure_names(page, each_run)
    for pattern in only:
        if not any(fnmatchcase(name, pattern) for name in names):
            hint = _hint(page, pattern, names)
            raise UserError(f"--only {pattern}: these runs have no such figure; {hint}")
    for where, figures in _groups(page, folder, each_run):
        yield where, [figure for figure in figures if not only or any(fnmatchcase(figure.stem, one) for one in only)]


def _hint(page: Page, pattern: str, names: Sequence[str]) -> str:
    if any(fnmatchcase(name, pattern) for name in figure_names(page)):
        return "single runs have it: add --each-run"
    return did_you_mean(pattern, names)


def _groups(page: Page, folder: Path, each_run: bool) -> Iterator[tuple[Path, list[Figure]]]:
    alone = len(page.runs) == 1 and not page.overview
    if page.overview:
        yield folder, _figures(page.overview)
    if alone or each_run:
        for run in page.runs:
            yield folder if alone else folder / _slug(run.title), _figures(run.sections)


def _figures(sections: Sequence[Section]) -> list[Figure]:
    return figures_of([card for section in sections for card in section.cards])


def _write(folder: Path, figures: Sequence[Figure], style: Style) -> Iterator[Path]:
    known = _record(folder)
    for figure in figures:
        digest = _digest(figure, style)
        paths = [folder / f"{figure.stem}.{ending}" for ending in style.formats]
        if known.get(figure.stem) != digest or not all(path.is_file() for path in paths):
            from fibec_ray.analysis.figures import draw  # matplotlib takes a second to load

            for path, content in zip(paths, draw(figure, style).values(), strict=True):
                replace_file(path, content)
            known[figure.stem] = digest
        yield from paths
    if figures:
        replace_file(folder / RECORD, json.dumps(known, indent=1, sort_keys=True).encode())


def _record(folder: Path) -> dict[str, str]:
    """Empty where there is none, or none that can be read: then every figure is written."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _digest(figure: Figure, style: Style) -> str:
    text = json.dumps([VERSION, repr(style), figure_data(figure)], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _slug(title: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in title.lower()).strip("-")


def refuse_file(folder: Path) -> None:
    """Raise RunDirError where the folder for figures is a file."""
    if folder.exists() and not folder.is_dir():
        raise RunDirError(f"{folder}: is a file; --figures takes the folder to write figures into")
