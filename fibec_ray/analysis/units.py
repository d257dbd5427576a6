"""The unit in which a number of seconds, bytes or samples is easiest to read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Unit:
    """A unit for display."""

    name: str
    size: float
    """size in the log's unit"""


SECONDS = (Unit("s", 1), Unit("min", 60), Unit("h", 3600), Unit("days", 86400))
BYTES = (Unit("B", 1), Unit("kB", 1e3), Unit("MB", 1e6), Unit("GB", 1e9), Unit("TB", 1e12))
JOULES = (Unit("J", 1), Unit("kJ", 1e3), Unit("MJ", 1e6), Unit("GJ", 1e9))
COUNT = (Unit("", 1), Unit("thousand", 1e3), Unit("million", 1e6), Unit("billion", 1e9))


def unit_for(largest: float, units: tuple[Unit, ...]) -> Unit:
    """The largest unit in which the value is at least 2."""
    return next((unit for unit in reversed(units) if largest >= 2 * unit.size), units[0])


def readable(value: float, units: tuple[Unit, ...]) -> str:
    """Format with four digits and a unit: `readable(7_200, SECONDS)` is '2 h'."""
    unit = unit_for(value, units)
    return f"{value / unit.size:.4g} {unit.name}".strip()
