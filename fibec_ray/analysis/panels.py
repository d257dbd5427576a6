"""Draws curves as small panels with one legend, for `fibec-ray paper-table` and the front page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as MplFigure
from matplotlib.lines import Line2D

from fibec_ray.analysis.figure import Curve
from fibec_ray.analysis.figures import saved
from fibec_ray.analysis.palette import PALETTE, entry
from fibec_ray.analysis.paper_style import Style

MAX_COLUMNS = 5
MAX_MARKERS = 6
"""on one line"""
PANEL_INCHES = (2.2, 1.8)
LEGEND_INCHES = 0.17
"""height of one row of the legend, at 8 points"""


@dataclass(frozen=True)
class Theme:
    """Colours for a light or a dark page."""

    ink: str
    quiet: str
    grid: str
    dark: bool = False
    background: str | None = "white"
    """None: transparent"""


LIGHT = Theme("#222222", "#444444", "#E3E3E3")
DARK = Theme("#e6e9ec", "#aab3bd", "#3a4149", dark=True, background=None)


def draw_panels(
    curves: Sequence[Curve], title: str, style: Style | None = None, theme: Theme = LIGHT
) -> dict[str, bytes]:
    """Draw the panels. Returns files as bytes, by ending such as svg. The same curves give the same bytes each time.

    The first series of a curve is drawn on top, with a thicker line. A series has the same look in all panels.
    """
    style = style or Style()
    with matplotlib.rc_context(style.rc() | {"svg.hashsalt": title}):
        figure = _drawn(curves, style, theme)
        return {ending: saved(figure, title, ending, style.dpi) for ending in style.formats}


def _drawn(curves: Sequence[Curve], style: Style, theme: Theme) -> MplFigure:
    labels = list(dict.fromkeys(series.label for curve in curves for series in curve.series))
    columns = min(len(curves), MAX_COLUMNS)
    rows = math.ceil(len(curves) / columns)
    label_inches = 0.06 * max(map(len, labels)) + 0.5  # at 8 points, the line before it included
    in_legend = max(1, min(len(labels), int(columns * PANEL_INCHES[0] / label_inches)))
    scale = style.font_size / Style().font_size
    height = rows * PANEL_INCHES[1] + math.ceil(len(labels) / in_legend) * LEGEND_INCHES
    figure = MplFigure(
        figsize=(scale * columns * PANEL_INCHES[0], scale * height), dpi=style.dpi, layout="constrained",
        facecolor=theme.background or "none",
    )  # fmt: skip
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for at, axes in enumerate(grid.flat):
        if at < len(curves):
            _panel(axes, curves[at], labels, theme)
            axes.set_ylabel(curves[at].y_label if at % columns == 0 else "", color=theme.ink)
            axes.set_xlabel(curves[at].x_label if at + columns >= len(curves) else "", color=theme.ink)
        else:
            axes.set_axis_off()
    figure.legend(
        [Line2D([], [], **_look(at, theme)) for at in range(len(labels))], labels, loc="outside lower center",
        ncols=in_legend, frameon=False, labelcolor=theme.ink, handlelength=2.6, columnspacing=1.2,
    )  # fmt: skip
    return figure


def _panel(axes: Axes, curve: Curve, labels: Sequence[str], theme: Theme) -> None:
    for series in reversed(curve.series):
        xs, ys = zip(*series.points, strict=True)
        every = math.ceil(len(xs) / MAX_MARKERS)
        axes.plot(xs, ys, markevery=every, **_look(labels.index(series.label), theme))
    axes.set_title(curve.title, loc="left", color=theme.ink, fontsize="medium", fontweight="bold")
    axes.set_facecolor("none")
    axes.grid(visible=True, color=theme.grid, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(colors=theme.quiet, length=2, width=0.5)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.quiet)


def _look(at: int, theme: Theme) -> dict[str, Any]:
    """The first series is thick. From the 13th on, colours repeat with hollow markers."""
    look = entry(at)
    colour = look.dark if theme.dark else look.light
    return {
        "color": colour,
        "linewidth": 2.0 if at == 0 else 1.1,
        "linestyle": (0, look.dash) if look.dash else "-",
        "marker": look.marker,
        "markersize": 4.0,
        "markeredgewidth": 0.0 if at < len(PALETTE) else 0.8,
        "markerfacecolor": colour if at < len(PALETTE) else "none",
    }
