"""Draws a Figure for a paper with matplotlib: PDF, SVG and PNG in the size and font of a Style."""

from __future__ import annotations

import io
import math
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure as MplFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation

from fibec_ray.analysis.figure import Curve, Figure, Heat, Timeline
from fibec_ray.analysis.palette import PALETTE, VIRIDIS, Entry, entry
from fibec_ray.analysis.paper_style import Style

_PAD = 0.03  # inches
_HATCHES = ("", "////", "....", "xxxx")
_LEVEL_STYLES = ("--", ":")
_INK, _QUIET, _GRID = "#222222", "#444444", "#E3E3E3"
_MAX_MARKERS = 24
_MAX_ROW_LABELS = 12
_DODGE = 2.0
"""points between the error bars of neighbouring series"""
SCREEN = Style(width=6.4, height=3.4, font_size=10.0, titles=True, dpi=110)
"""For notebooks."""
_VIRIDIS = LinearSegmentedColormap.from_list("viridis-stops", VIRIDIS)


class NotebookFigure(MplFigure):
    """A figure that notebooks show by itself, without pyplot."""

    def _repr_png_(self) -> bytes:
        out = io.BytesIO()
        self.savefig(out, format="png", dpi=self.dpi)
        return out.getvalue()


def draw(shown: Figure, style: Style | None = None) -> dict[str, bytes]:
    """The figure as bytes, by ending of the file name. The same figure gives the same bytes each time."""
    style = style or Style()
    with matplotlib.rc_context(style.rc() | {"svg.hashsalt": shown.title}):
        figure = _drawn(shown, style)
        return {ending: saved(figure, shown.title, ending, style.dpi) for ending in style.formats}


def figure_of(shown: Figure, style: Style = SCREEN) -> MplFigure:
    """The figure as a matplotlib object, to show in a notebook or to change."""
    with matplotlib.rc_context(style.rc()):
        return _drawn(shown, style)


def _drawn(shown: Figure, style: Style) -> MplFigure:
    figure, axes = _empty(shown, style)
    if isinstance(shown, Heat):
        _heat(figure, axes, shown)
    elif isinstance(shown, Timeline):
        _timeline(figure, axes, shown)
    else:
        _curve(figure, axes, shown, style)
    if style.titles:
        axes.set_title(shown.title, loc="left", fontsize=1.1 * style.font_size, fontweight="bold", color=_INK)
    axes.set_xlabel(shown.x_label, color=_INK)
    axes.set_ylabel(shown.y_label, color=_INK)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout is the same for every format, and takes longest
    return figure


def _empty(shown: Figure, style: Style) -> tuple[MplFigure, Axes]:
    extra = 0.0 if style.fixed_size or not isinstance(shown, Curve) else _legend_inches(shown, style)
    layout = ConstrainedLayoutEngine(w_pad=_PAD, h_pad=_PAD)
    figure = NotebookFigure(
        figsize=(style.width, style.height + extra), dpi=style.dpi, layout=layout, facecolor="white"
    )
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def saved(figure: MplFigure, title: str, ending: str, dpi: int) -> bytes:
    """Return the figure as a file, without date and version, so that the same numbers give the same bytes."""
    unsaid: dict[str, dict[str, Any]] = {
        "png": {"Software": None},
        "svg": {"Date": None, "Creator": None},
        "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    }
    out = io.BytesIO()
    figure.savefig(out, format=ending, dpi=dpi, metadata={"Title": title, **unsaid[ending]})
    return out.getvalue()


def _curve(figure: MplFigure, axes: Axes, curve: Curve, style: Style) -> None:
    {"bars": _bars, "dots": _dots, "lines": _lines}[curve.kind](axes, curve)
    for index, (label, y) in enumerate(curve.levels):
        line = _LEVEL_STYLES[index % len(_LEVEL_STYLES)]
        axes.axhline(y, color=_QUIET, linestyle=line, linewidth=0.9, label=label, zorder=1)
    _dress(axes, curve)
    if _num_keys(curve) > 1:
        figure.legend(
            loc="outside lower center", ncols=_legend_columns(curve, style), frameon=False, labelcolor=_INK,
            handlelength=2.6, columnspacing=1.2, labelspacing=0.3, borderpad=0.1,
        )  # fmt: skip


def _num_keys(curve: Curve) -> int:
    return len(curve.series) + len(curve.levels)


def _legend_columns(curve: Curve, style: Style) -> int:
    """As many as fit side by side, at about half an em a letter and four ems for the line before it."""
    longest = max(
        len(label) for label in [*(series.label for series in curve.series), *(key for key, _ in curve.levels)]
    )
    column = (0.52 * longest + 4.2) * 0.9 * style.font_size / 72
    return max(1, min(_num_keys(curve), int((style.width - 2 * _PAD) / column)))


def _legend_inches(curve: Curve, style: Style) -> float:
    if _num_keys(curve) < 2:
        return 0.0
    return math.ceil(_num_keys(curve) / _legend_columns(curve, style)) * 1.25 * 0.9 * style.font_size / 72


def _heat(figure: MplFigure, axes: Axes, heat: Heat) -> None:
    values = np.array([[np.nan if value is None else value for value in line] for line in heat.values], dtype=float)
    image = axes.imshow(values, aspect="auto", interpolation="nearest", cmap=_colours(heat), extent=_extent(heat))
    shown = range(0, len(heat.rows), -(-len(heat.rows) // _MAX_ROW_LABELS))
    axes.set_yticks([at + 0.5 for at in shown], [heat.rows[at] for at in shown])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_frame_on(False)
    if heat.names and len(heat.names) <= len(PALETTE):
        image.set_clim(-0.5, len(heat.names) - 0.5)
        bar = figure.colorbar(image, ax=axes)
        bar.set_ticks(list(range(len(heat.names))), labels=list(heat.names))
    elif len({value for line in heat.values for value in line} - {None}) > 1:  # else a scale would show one colour
        bar = figure.colorbar(image, ax=axes, label=heat.value_label)
    else:
        return
    bar.outline.set_visible(False)


def _colours(heat: Heat) -> Colormap:
    """Colours of the palette for a few categories, else a scale."""
    if heat.names and len(heat.names) <= len(PALETTE):
        return ListedColormap([look.light for look in PALETTE[: len(heat.names)]])
    return _VIRIDIS


def _timeline(figure: MplFigure, axes: Axes, timeline: Timeline) -> None:
    for name in sorted({span.name for span in timeline.spans}):
        spans = [span for span in timeline.spans if span.name == name]
        axes.barh(
            [span.row for span in spans],
            [span.end - span.start for span in spans],
            left=[span.start for span in spans],
            height=0.8,
            label=timeline.names[name],
            color=entry(name).light,
            edgecolor=[_INK if span.again else "none" for span in spans],
        )
    shown = range(0, len(timeline.rows), -(-len(timeline.rows) // _MAX_ROW_LABELS))
    axes.set_yticks(list(shown), [timeline.rows[at] for at in shown])
    axes.invert_yaxis()
    _light_frame(axes)
    if 1 < len(timeline.names) <= len(PALETTE):
        figure.legend(loc="outside lower center", ncols=4, frameon=False, labelcolor=_INK, borderpad=0.1)


def _extent(heat: Heat) -> tuple[float, float, float, float]:
    """Left, right, bottom, top: a column around its x, the first row above."""
    step = heat.columns[1] - heat.columns[0] if len(heat.columns) > 1 else 1
    return heat.columns[0] - 0.5, heat.columns[-1] + step - 0.5, len(heat.rows), 0


def _dots(axes: Axes, curve: Curve) -> None:
    for index, series in enumerate(curve.series):
        look = entry(index)
        xs, ys = [x for x, _ in series.points], [y for _, y in series.points]
        axes.scatter(xs, ys, s=9, color=look.light, marker=look.marker, linewidths=0, label=series.label)


def _lines(axes: Axes, curve: Curve) -> None:
    for index, (series, bars) in enumerate(zip(curve.series, curve.error_bars(), strict=True)):
        look = entry(index)
        xs, ys = [x for x, _ in series.points], [y for _, y in series.points]
        every = -(-len(xs) // _MAX_MARKERS) if xs else 1
        axes.plot(
            xs, ys, color=look.light, linewidth=1.2, linestyle=(0, look.dash) if look.dash else "-",
            marker=look.marker, markersize=4.2, markeredgewidth=0, markevery=every, label=series.label,
        )  # fmt: skip
        if bars:
            _error_bars(axes, series.points, series.band, bars, look, _DODGE * (index - (len(curve.series) - 1) / 2))
        elif series.band:
            low, high = zip(*series.band, strict=True)
            axes.fill_between(xs, low, high, color=look.light, alpha=0.18, linewidth=0)
            for edge in (low, high):
                axes.plot(xs, edge, color=look.light, linewidth=0.5, alpha=0.7)


def _error_bars(axes: Axes, points: Any, band: Any, bars: tuple[int, ...], look: Entry, dodge: float) -> None:
    """Draw error bars a little aside of their points, so that bars at one x do not overlap."""
    moved = axes.transData + ScaledTranslation(dodge / 72, 0, axes.figure.dpi_scale_trans)
    axes.update_datalim([(points[at][0], y) for at in bars for y in band[at]])  # moved lines do not widen the axes
    axes.autoscale_view()
    for at in bars:
        axes.plot(
            [points[at][0]] * 2, band[at], color=look.light, linewidth=0.8, marker="_", markersize=2.6,
            markeredgewidth=0.8, transform=moved,
        )  # fmt: skip


def _bars(axes: Axes, curve: Curve) -> None:
    for index, series in enumerate(curve.series):
        axes.bar(
            [x for x, _ in series.points],
            [y for _, y in series.points],
            width=0.75 * _gap(curve),
            color=entry(index).light,
            edgecolor="white",
            linewidth=0,
            hatch=_HATCHES[index % len(_HATCHES)],
            label=series.label,
        )


def _gap(curve: Curve) -> float:
    """Least distance of two bars."""
    xs = sorted({x for series in curve.series for x, _ in series.points})
    return min((right - left for left, right in pairwise(xs)), default=1.0)


def _dress(axes: Axes, curve: Curve) -> None:
    axes.grid(visible=True, axis="y" if curve.kind == "bars" else "both", color=_GRID, linewidth=0.5)
    axes.set_axisbelow(True)
    _light_frame(axes)
    if curve.whole_x:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10]))
    if curve.fraction:
        axes.set_ylim(-0.02, 1.04)


def _light_frame(axes: Axes) -> None:
    """Thin lines at the left and at the bottom only."""
    axes.tick_params(colors=_QUIET, length=2, width=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#999999")
        axes.spines[side].set_linewidth(0.6)
