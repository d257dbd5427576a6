"""The colours, markers and dashes of every figure: report pages and paper figures take them from here.

Twelve entries, told apart by colour-blind readers and in black and white: entries with similar colours have different
markers and dashes. The first six are Okabe and Ito's (2008), the others Paul Tol's "muted" scheme (2021) and a grey.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

Polygon = tuple[tuple[float, float], ...]
"""Corners of a marker, within a unit circle; y points up."""


@dataclass(frozen=True)
class Entry:
    """How one series looks."""

    light: str
    """colour on a light background, and on paper"""
    dark: str
    """colour on a dark background"""
    marker: Polygon
    dash: tuple[float, ...]
    """lengths of dashes and gaps, in line widths; empty for a solid line"""


def _regular(corners: int, turn: float = 0.0, inner: float = 1.0, size: float = 1.0) -> Polygon:
    """A regular polygon with a corner at the top; with inner < 1 a star that has as many points."""
    count = corners if inner == 1.0 else 2 * corners
    radii = [size * (inner if at % 2 and inner != 1.0 else 1.0) for at in range(count)]
    angles = [math.pi / 2 + turn + 2 * math.pi * at / count for at in range(count)]
    corner = [(radius * math.cos(angle), radius * math.sin(angle)) for radius, angle in zip(radii, angles, strict=True)]
    return tuple((round(x, 3), round(y, 3)) for x, y in corner)


def _plus(turn: float = 0.0, arm: float = 0.36) -> Polygon:
    corners = [(arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1)]
    corners += [(-x, -y) for x, y in corners]
    sine, cosine = math.sin(turn), math.cos(turn)
    return tuple((round(x * cosine - y * sine, 3), round(x * sine + y * cosine, 3)) for x, y in corners)


_CIRCLE, _SQUARE, _DIAMOND = _regular(20, size=0.9), _regular(4, math.pi / 4, size=1.1), _regular(4, size=1.2)
_UP, _DOWN, _LEFT = _regular(3, size=1.15), _regular(3, math.pi, size=1.15), _regular(3, math.pi / 2, size=1.15)
_PENTAGON, _STAR, _RIGHT = (
    _regular(5, size=1.05),
    _regular(5, inner=0.45, size=1.3),
    _regular(3, -math.pi / 2, size=1.15),
)
_SOLID, _DASHED, _DOTTED, _MIXED = (), (5.0, 2.0), (1.2, 1.6), (6.0, 1.6, 1.4, 1.6)

PALETTE = (
    Entry("#0072B2", "#4AA8E8", _CIRCLE, _SOLID),
    Entry("#D55E00", "#FF8A45", _SQUARE, _SOLID),
    Entry("#009E73", "#2FC79A", _UP, _SOLID),
    Entry("#CC79A7", "#E99AC6", _DIAMOND, _SOLID),
    Entry("#E69F00", "#F5C04A", _DOWN, _DASHED),
    Entry("#56B4E9", "#A3DAFF", _plus(), _DASHED),
    Entry("#332288", "#A99CF5", _plus(math.pi / 4), _DASHED),
    Entry("#882255", "#E0709F", _PENTAGON, _DASHED),
    Entry("#999933", "#C9C95E", _STAR, _DOTTED),
    Entry("#44AA99", "#7FE0D0", _LEFT, _DOTTED),
    Entry("#666666", "#B8B8B8", _RIGHT, _MIXED),
    Entry("#AA4499", "#D983CB", _SQUARE, _MIXED),
)

VIRIDIS = ("#440154", "#414487", "#2A788E", "#22A884", "#7AD151", "#FDE725")
"""Colours of heat maps, from low to high: six stops of matplotlib's `viridis`."""


def entry(index: int) -> Entry:
    """The look of the series with this number, from 0. The 13th series looks like the first."""
    return PALETTE[index % len(PALETTE)]


def css() -> str:
    """A colour variable per entry for light and dark pages, and a class for each: `.s3 { --key: var(--s3); }`."""
    light = " ".join(f"--s{at}: {found.light};" for at, found in enumerate(PALETTE))
    dark = " ".join(f"--s{at}: {found.dark};" for at, found in enumerate(PALETTE))
    classes = "\n".join(f".s{at} {{ --key: var(--s{at}); }}" for at in range(len(PALETTE)))
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{classes}\n"


def browser_data() -> list[dict[str, object]]:
    """Markers and dashes for browser/*.js, in the order of PALETTE."""
    return [{"marker": found.marker, "dash": found.dash} for found in PALETTE]
