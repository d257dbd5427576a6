"""The palette can be told apart by colour-blind readers, and both kinds of figures use it."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from fibec_ray.analysis.palette import PALETTE, browser_data, css, entry

# Machado, Oliveira and Fernandes (2009), severity 1; for linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def lab(colour: str, sight: str) -> np.ndarray:
    xyz = TO_XYZ @ np.clip(SIGHT[sight] @ linear(colour), 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def contrast(colour: str, other: str) -> float:
    low, high = sorted(float(TO_XYZ[1] @ linear(one)) for one in (colour, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
def test_two_entries_differ_in_colour_or_in_dash_and_marker(theme: str, sight: str) -> None:
    """A difference of 11 in CIELAB is seen at a glance."""
    for one, other in combinations(PALETTE, 2):
        distance = np.linalg.norm(lab(getattr(one, theme), sight) - lab(getattr(other, theme), sight))
        assert distance > 11 or one.dash != other.dash, (getattr(one, theme), getattr(other, theme), distance)


def test_there_are_ten_entries_or_more_and_no_two_are_equal() -> None:
    assert len({found.light for found in PALETTE}) == len({found.dark for found in PALETTE}) == len(PALETTE) >= 10
    assert len({(found.marker, found.dash) for found in PALETTE}) == len(PALETTE)
    assert entry(len(PALETTE)) == PALETTE[0]


def test_every_colour_stands_out_from_its_background() -> None:
    assert min(contrast(found.light, "#FFFFFF") for found in PALETTE) > 2.0
    assert min(contrast(found.dark, "#1D2125") for found in PALETTE) > 4.0


def test_pages_get_every_entry() -> None:
    assert all(
        f"--s{at}: {found.light};" in css() and f"--s{at}: {found.dark};" in css() for at, found in enumerate(PALETTE)
    )
    assert len(browser_data()) == len(PALETTE)
