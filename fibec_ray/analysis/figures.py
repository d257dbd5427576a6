"""Draws a Figure for a paper, as PNG and SVG, with matplotlib's object interface."""

from __future__ import annotations

import io
from itertools import pairwise

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as MplFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from fibec_ray.analysis.figure import Curve, Figure, Heat, Timeline

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
_MAX_ROW_LABELS = 12


def draw(shown: Figure) -> dict[str, bytes]:
    """The figure as bytes, by ending of the file name."""
    figure = MplFigure(
        figsize=_SIZE, dpi=DPI, layout=ConstrainedLayoutEngine(w_pad=_PAD, h_pad=_PAD), facecolor="white"
    )
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if isinstance(shown, Heat):
        _heat(figure, axes, shown)
    elif isinstance(shown, Timeline):
        _timeline(axes, shown)
    else:
        _curve(figure, axes, shown)
    axes.set_title(shown.title, loc="left", fontsize=12, fontweight="bold", color=_INK)
    axes.set_xlabel(shown.x_label, color=_INK)
    axes.set_ylabel(shown.y_label, color=_INK)
    return {ending: _saved(figure, shown.title, ending) for ending in ("png", "svg")}


def _saved(figure: MplFigure, title: str, ending: str) -> bytes:
    """The same bytes each time: no date, and ids from the content alone."""
    out = io.BytesIO()
    unsaid = {"Software": None} if ending == "png" else {"Date": None, "Creator": None}
    with matplotlib.rc_context({"svg.hashsalt": title, "svg.fonttype": "none"}):
        figure.savefig(out, format=ending, metadata={"Title": title, **unsaid})
    return out.getvalue()


def _curve(figure: MplFigure, axes: Axes, curve: Curve) -> None:
    {"bars": _bars, "dots": _dots, "lines": _lines}[curve.kind](axes, curve)
    _levels(axes, curve)
    _dress(axes, curve)
    if len(curve.series) + len(curve.levels) > 1:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=_INK)


def _heat(figure: MplFigure, axes: Axes, heat: Heat) -> None:
    values = np.array([[np.nan if value is None else value for value in line] for line in heat.values], dtype=float)
    image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis", extent=_extent(heat))
    shown = range(0, len(heat.rows), -(-len(heat.rows) // _MAX_ROW_LABELS))
    axes.set_yticks([at + 0.5 for at in shown], [heat.rows[at] for at in shown])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    bar = figure.colorbar(image, ax=axes, label=heat.value_label)
    if heat.names and len(heat.names) <= _MAX_ROW_LABELS:
        bar.set_ticks(list(range(len(heat.names))), labels=list(heat.names))


def _timeline(axes: Axes, timeline: Timeline) -> None:
    for span in timeline.spans:
        colour = _PALETTE[span.name % len(_PALETTE)]
        edge = _INK if span.again else "none"
        axes.barh(span.row, span.end - span.start, left=span.start, height=0.8, color=colour, edgecolor=edge)
    shown = range(0, len(timeline.rows), -(-len(timeline.rows) // _MAX_ROW_LABELS))
    axes.set_yticks(list(shown), [timeline.rows[at] for at in shown])
    axes.invert_yaxis()


def _extent(heat: Heat) -> tuple[float, float, float, float]:
    """Left, right, bottom, top: a column around its x, the first row above."""
    step = heat.columns[1] - heat.columns[0] if len(heat.columns) > 1 else 1
    return heat.columns[0] - 0.5, heat.columns[-1] + step - 0.5, len(heat.rows), 0


def _dots(axes: Axes, curve: Curve) -> None:
    for index, series in enumerate(curve.series):
        xs, ys = [x for x, _ in series.points], [y for _, y in series.points]
        axes.scatter(xs, ys, s=14, color=_PALETTE[index % len(_PALETTE)], label=series.label)


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
        if series.band:
            xs, low, high = [x for x, _ in series.points], *zip(*series.band, strict=True)
            axes.fill_between(xs, low, high, color=_PALETTE[index % len(_PALETTE)], alpha=0.18, linewidth=0)


def _bars(axes: Axes, curve: Curve) -> None:
    for index, series in enumerate(curve.series):
        axes.bar(
            [x for x, _ in series.points],
            [y for _, y in series.points],
            width=0.75 * _gap(curve),
            color=_PALETTE[index % len(_PALETTE)],
            edgecolor="white",
            hatch=_HATCHES[index % len(_HATCHES)],
            label=series.label,
        )


def _gap(curve: Curve) -> float:
    """Least distance of two bars."""
    xs = sorted({x for series in curve.series for x, _ in series.points})
    return min((right - left for left, right in pairwise(xs)), default=1.0)


def _levels(axes: Axes, curve: Curve) -> None:
    for index, (label, y) in enumerate(curve.levels):
        style = _LEVEL_STYLES[index % len(_LEVEL_STYLES)]
        axes.axhline(y, color=_QUIET, linestyle=style, linewidth=1.4, label=label, zorder=1)


def _dress(axes: Axes, curve: Curve) -> None:
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
