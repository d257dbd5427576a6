"""Writes a report page: one HTML file that contains its style, script and data."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fibec_ray.analysis import palette
from fibec_ray.analysis.figure import Card, Curve, Figure, Heat, Series, Timeline
from fibec_ray.analysis.run_page import RunPage, Section

SCRIPTS = ("base.js", "curves.js", "matrices.js", "timeline.js", "cards.js")
"""in the order in which they use each other"""

DIGITS = 5
"""significant digits of numbers in figures"""


@dataclass(frozen=True)
class Page:
    """Contents of an HTML report: what all runs have in common, then each run."""

    title: str
    notices: tuple[str, ...]
    overview: tuple[Section, ...]
    """of all runs together; empty on the page of a single run"""
    runs: tuple[RunPage, ...]
    facts: tuple[tuple[str, str], ...] = ()
    """(label, value) of the settings that all runs share; empty on the page of a single run, which has its own"""


def render(page: Page) -> str:
    """One HTML file with everything in it; it loads nothing from the network."""
    figures: list[dict[str, Any]] = []
    environment = Environment(
        loader=PackageLoader(__package__, "browser"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        title=page.title,
        notices=page.notices,
        facts=page.facts,
        overview=[_numbered(section, figures) for section in page.overview],
        runs=[vars(run) | {"sections": [_numbered(section, figures) for section in run.sections]} for run in page.runs],
        css=Markup(palette.css()) + _file("page.css"),
        script=Markup("\n").join(_file(name) for name in SCRIPTS),
        figures=_json(figures),
        looks=_json({"palette": palette.browser_data(), "viridis": palette.VIRIDIS}),
    )


def size_of(run: RunPage) -> int:
    """Estimate the bytes that the run's figures take on a page."""
    cards = [card for section in run.sections for card in section.cards]
    return sum(len(_json([figure_data(figure)])) for card in cards for figure in card.figures)


def figure_data(figure: Figure) -> dict[str, Any]:
    """The figure as plain values for browser/*.js; null where a number is missing or not finite."""
    if isinstance(figure, Timeline):
        return _timeline_data(figure)
    return _heat_data(figure) if isinstance(figure, Heat) else _curve_data(figure)


def _numbered(section: Section, figures: list[dict[str, Any]]) -> dict[str, Any]:
    """Replace the section's cards by the positions of their figures, which are appended to the list."""
    cards = [_numbers(card, figures) for card in section.cards]
    return {"title": section.title, "tables": section.tables, "cards": cards}


def _numbers(card: Card, figures: list[dict[str, Any]]) -> list[int]:
    first = len(figures)
    figures.extend(figure_data(figure) for figure in card.figures)
    return list(range(first, len(figures)))


def _curve_data(curve: Curve) -> dict[str, Any]:
    pairs = zip(curve.series, curve.error_bars(), strict=True)
    return vars(curve) | {
        "series": [_series_data(series) | ({"bars": bars} if bars else {}) for series, bars in pairs],
        "levels": [[label, _short(y)] for label, y in curve.levels],
        "whole_y": curve.kind == "bars" and curve.y_label in ("devices", "samples"),
    }


def _series_data(series: Series) -> dict[str, Any]:
    data = {"label": series.label, "x": _numbers_of(x for x, _ in series.points)}
    data["y"] = _numbers_of(y for _, y in series.points)
    if series.band:
        data |= {
            "low": _numbers_of(low for low, _ in series.band),
            "high": _numbers_of(high for _, high in series.band),
        }
    return data


def _heat_data(heat: Heat) -> dict[str, Any]:
    plain = replace(heat, values=())
    return vars(plain) | {"kind": "heat", "values": [_numbers_of(line) for line in heat.values]}


def _timeline_data(timeline: Timeline) -> dict[str, Any]:
    """Spans as lists: row, start, end, name, rounds, again."""
    spans = [_numbers_of(vars(span).values()) for span in timeline.spans]
    return vars(replace(timeline, spans=())) | {"kind": "timeline", "spans": spans}


def _numbers_of(values: Iterable[float | None]) -> list[float | None]:
    return [_short(value) for value in values]


def _short(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def _json(data: Any) -> Markup:
    """JSON for a script element; `<` is escaped so that no text can close the element."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False)
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def _file(name: str) -> Markup:
    return Markup(resources.files(__package__).joinpath("browser", name).read_text(encoding="utf-8"))
