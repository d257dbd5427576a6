"""Draws a Curve as a PNG; called by the report. Uses matplotlib's object interface: no global state, no display."""

from __future__ import annotations

import io

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from analysis.curves import Curve

DPI = 150
_SIZE = (6.4, 4.0)  # inches
_PAD = 0.1  # inches
_PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
)  # Okabe and Ito: safe for colour-blind eyes
_MARKERS = ("o", "s", "^", "D", "v", "P")
_HATCHES = ("", "///")
_LEVEL_STYLES = ("--", ":")
_INK, _QUIET, _GRID = "#222222", "#666666", "#E3E3E3"
_MAX_MARKERS = 60


def png(curve: Curve) -> bytes:
    """The figure as PNG bytes."""
    figure = Figure(figsize=_SIZE, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=_PAD, h_pad=_PAD), facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    (_bars if curve.kind == "bars" else _lines)(axes, curve)
    _levels(axes, curve)
    _dress(axes, curve)
    if len(curve.series) + len(curve.levels) > 1:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=_INK)
    out = io.BytesIO()
    figure.savefig(out, format="png", metadata={"Title": curve.title, "Software": None})
    return out.getvalue()


def _lines(axes: Axes, curve: Curve) -> None:
    for index, series in enumerate(curve.series):
        few = len(series.points) <= _MAX_MARKERS
        axes.plot(
            [x for x, _ in series.points],
            [y for _, y in series.points],
            color=_PALETTE[index % len(_PALETTE)],
            marker=_MARKERS[index % len(_MARKERS)] if few else None,
            markersize=4,
            linewidth=1.8,
            label=series.label,
        )


def _bars(axes: Axes, curve: Curve) -> None:
    for index, series in enumerate(curve.series):
        axes.bar(
            [x for x, _ in series.points],
            [y for _, y in series.points],
            width=0.75,
            color=_PALETTE[index % len(_PALETTE)],
            edgecolor="white",
            hatch=_HATCHES[index % len(_HATCHES)],
            label=series.label,
        )


def _levels(axes: Axes, curve: Curve) -> None:
    for index, (label, y) in enumerate(curve.levels):
        style = _LEVEL_STYLES[index % len(_LEVEL_STYLES)]
        axes.axhline(y, color=_QUIET, linestyle=style, linewidth=1.4, label=label, zorder=1)


def _dress(axes: Axes, curve: Curve) -> None:
    axes.set_title(curve.title, loc="left", fontsize=12, fontweight="bold", color=_INK)
    axes.set_xlabel(curve.x_label, color=_INK)
    axes.set_ylabel(curve.y_label, color=_INK)
    axes.grid(visible=True, axis="y" if curve.kind == "bars" else "both", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_QUIET, length=0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#BBBBBB")
    if curve.whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if curve.fraction:
        axes.set_ylim(-0.02, 1.04)
