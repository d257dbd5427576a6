"""How paper figures look: size, font, file formats. `fibec-ray report --figures` makes a Style from its options."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

from fibec_ray.errors import UserError, did_you_mean

FORMATS = ("pdf", "svg", "png")
STYLES = {"one-column": (3.4, 2.3), "two-column": (7.0, 2.8)}
"""Width and height in inches. One column of a two-column paper, and its full text width (ACL, NeurIPS, IEEE)."""
GENERIC_FONTS = ("sans-serif", "serif", "monospace")
MIN_INCHES, MAX_INCHES = 1.0, 40.0
MIN_POINTS, MAX_POINTS = 4.0, 40.0


@dataclass(frozen=True)
class Style:
    """Raises nothing by itself: `style_of` checks what a user gives."""

    width: float = STYLES["one-column"][0]
    """inches"""
    height: float = STYLES["one-column"][1]
    """inches, for the axes and their labels; a legend adds to it unless the size is fixed"""
    fixed_size: bool = False
    """the whole figure, legend included, has exactly this size"""
    font: str = "sans-serif"
    font_size: float = 8.0
    """points"""
    titles: bool = False
    formats: tuple[str, ...] = FORMATS
    dpi: int = 300
    """of PNG files"""

    def rc(self) -> dict[str, Any]:
        """Settings for matplotlib. PDF text is embedded as TrueType, which publishers ask for; SVG text stays text."""
        family = [self.font] if self.font in GENERIC_FONTS else [self.font, "sans-serif"]
        return {
            "font.family": family,
            "font.size": self.font_size,
            "axes.labelsize": self.font_size,
            "xtick.labelsize": 0.9 * self.font_size,
            "ytick.labelsize": 0.9 * self.font_size,
            "legend.fontsize": 0.9 * self.font_size,
            "hatch.linewidth": 0.5,
            "pdf.fonttype": 42,
            "svg.fonttype": "none",
        }


def style_of(
    style: str = "one-column",
    size: str | None = None,
    font: str | None = None,
    font_size: float | None = None,
    titles: bool = False,
    formats: tuple[str, ...] = FORMATS,
) -> Style:
    """A Style from command-line values. size: WIDTHxHEIGHT in inches. Raises UserError that says what is allowed."""
    if style not in STYLES:
        raise UserError(f"--style {style}: no such style; {did_you_mean(style, tuple(STYLES))}")
    for wrong in (name for name in formats if name not in FORMATS):
        raise UserError(f"--format {wrong}: no such format; choose from {', '.join(FORMATS)}")
    width, height = _inches(size) if size else STYLES[style]
    points = 8.0 if font_size is None else font_size
    if not MIN_POINTS <= points <= MAX_POINTS:
        raise UserError(f"--font-size {points:g}: give {MIN_POINTS:g} to {MAX_POINTS:g} points")
    return Style(width, height, size is not None, _known_font(font or "sans-serif"), points, titles, formats)


def _inches(size: str) -> tuple[float, float]:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*[x×,]\s*(\d+(?:\.\d+)?)", size.strip())
    width, height = (float(part) for part in found.groups()) if found else (math.nan, math.nan)
    if not (MIN_INCHES <= width <= MAX_INCHES and MIN_INCHES <= height <= MAX_INCHES):
        raise UserError(
            f"--size {size}: give WIDTHxHEIGHT in inches, each {MIN_INCHES:g} to {MAX_INCHES:g}, such as --size 3.4x2.3"
        )
    return width, height


def _known_font(font: str) -> str:
    """Raises UserError where neither the system nor matplotlib has the font."""
    if font in GENERIC_FONTS or font in _installed_fonts():
        return font
    near = get_close_matches(font, _installed_fonts(), n=1)
    raise UserError(
        f"--font {font}: is not installed on this machine; {did_you_mean(font, near or GENERIC_FONTS)}. "
        "After you install a font, delete matplotlib's list of fonts, ~/.cache/matplotlib/fontlist-*.json"
    )


@cache
def _installed_fonts() -> frozenset[str]:
    from matplotlib.font_manager import get_font_names  # takes half a second to load

    return frozenset(get_font_names())
