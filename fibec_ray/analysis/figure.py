"""What a figure shows. How it is drawn is separate: browser/*.js draws it on report pages, figures.py for papers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Point = tuple[float, float]

MAX_ERROR_BARS = 8
"""Of one series."""

Anchors = Mapping[str, float]
"""Accuracies that need no training: 'majority' (always the commonest class), 'own_majority' (each device its own).

Of a regression R2: 'mean' (of the training values), 'own_mean' (each device's own).
"""


@dataclass(frozen=True)
class Series:
    """One line of a figure, with an optional band."""

    label: str
    points: tuple[Point, ...]
    band: tuple[tuple[float, float], ...] = ()
    """(lowest, highest) at each point; empty: none"""


@dataclass(frozen=True)
class _Titled:
    stem: str
    """file name without its ending"""
    title: str
    caption: str
    """one sentence"""
    x_label: str
    y_label: str


@dataclass(frozen=True)
class Curve(_Titled):
    """Lines, bars or dots over one x axis. levels: horizontal lines to compare with, as (label, y)."""

    series: tuple[Series, ...]
    levels: tuple[tuple[str, float], ...] = ()
    kind: Literal["lines", "bars", "dots"] = "lines"
    whole_x: bool = False
    """x counts something: ticks at integers only"""
    fraction: bool = False
    """y is between 0 and 1, and the axis shows that whole range"""
    choice: str = ""
    """label of the button that shows this figure of its card"""

    def error_bars(self) -> list[tuple[int, ...]]:
        """For each series, the points at which to draw its band as an error bar; empty: draw it as a shade.

        Shades of several series would blend into each other, so these get at most MAX_ERROR_BARS bars each. Where there
        are more points than that, different series have their bars at different points.
        """
        banded = [at for at, series in enumerate(self.series) if series.band]
        if len(banded) < 2:
            return [()] * len(self.series)
        return [_every_few(len(series.points), at) if series.band else () for at, series in enumerate(self.series)]


def _every_few(count: int, series: int) -> tuple[int, ...]:
    step = -(-count // MAX_ERROR_BARS)
    return tuple(range(series % step, count, step)) if count else ()


@dataclass(frozen=True)
class Heat(_Titled):
    """A matrix of numbers as colours: one row for each layer or device, one column for some rounds."""

    value_label: str
    columns: tuple[float, ...]
    """x of each column"""
    rows: tuple[str, ...]
    """label of each row"""
    values: tuple[tuple[float | None, ...], ...]
    """by row; None is left blank"""
    names: tuple[str, ...] = ()
    """names of the values 0, 1, 2 ... where they are categories"""
    choice: str = ""


@dataclass(frozen=True)
class Span:
    """One bar of a Timeline."""

    row: int
    start: float
    end: float
    name: int
    """which of the Timeline's names"""
    rounds: int
    """the round"""
    again: int
    """how often the work was lost before"""


@dataclass(frozen=True)
class Timeline(_Titled):
    """Bars over time, one row for each device."""

    rows: tuple[str, ...]
    spans: tuple[Span, ...]
    names: tuple[str, ...]
    """names of the actors"""
    choice: str = ""


Figure = Curve | Heat | Timeline


@dataclass(frozen=True)
class Card:
    """Figures that share a place on the page, one shown at a time."""

    section: str
    figures: tuple[Figure, ...]
