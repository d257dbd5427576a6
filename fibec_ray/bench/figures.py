"""Turns measurements into the benchmark's tables: medians, ranges, ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

UNMEASURED = 2
"""rounds of a run whose time does not count: the first, in which models are loaded, and the last, which is evaluated"""


@dataclass(frozen=True)
class Figures:
    """The numbers of one run."""

    speed: float
    """device-rounds per second over the measured rounds"""
    first_round_s: float
    """from the start of the command to the end of its first round"""
    peak_bytes: int
    driver_bytes: int


@dataclass(frozen=True)
class Refusal:
    """A run without numbers, and why, in a few words for a table."""

    reason: str


Outcome = Figures | Refusal


def figures(ends: Sequence[float], started: float, cohort_size: int, peak_bytes: int, driver_bytes: int) -> Figures:
    """ends: when each round ended, seconds since the epoch, as `started` is."""
    num_rounds = len(ends) - UNMEASURED
    assert num_rounds > 0, "too few rounds to measure any"
    return Figures(cohort_size * num_rounds / (ends[-2] - ends[0]), ends[0] - started, peak_bytes, driver_bytes)


def speed_table(outcomes: Mapping[str, Sequence[Outcome]], base: str, instructions: str = "") -> str:
    """outcomes: of each repeat, by label. base: the label that speeds are compared with, within each repeat.

    instructions: of the processor, for the heading.
    """
    head = [instructions, "device-rounds / s", "of the bare loop", "first round after, s", "peak memory, GB"]
    lines = [_line(head), _line(["---"] * len(head))]
    for label, found in outcomes.items():
        known = measured(found)
        if isinstance(known, Refusal):
            lines.append(_line([label, f"no figure: {known.reason}", "", "", ""]))
            continue
        lines.append(_line([label, _speed(known), _ratio(found, outcomes.get(base, ())), _first(known), _peak(known)]))
    return "\n".join(lines)


@dataclass(frozen=True)
class Size:
    """The size of one run of the second table."""

    num_devices: int
    cohort_size: int
    num_actors: int


def scale_table(outcomes: Mapping[Size, Sequence[Outcome]]) -> str:
    """The second table: fibec_ray with more devices, larger rounds and fewer actors."""
    head = ["devices", "per round", "actors", "device-rounds / s", "first round after, s", "peak memory, GB"]
    lines = [_line([*head, "driver (RSS), GB"]), _line(["---"] * (len(head) + 1))]
    for size, found in outcomes.items():
        where, known = [f"{size.num_devices:,}", str(size.cohort_size), str(size.num_actors)], measured(found)
        if isinstance(known, Refusal):
            lines.append(_line([*where, f"no figure: {known.reason}", "", "", ""]))
            continue
        driver = max(one.driver_bytes for one in known) / 1e9
        lines.append(_line([*where, _speed(known), _first(known), _peak(known), f"{driver:.2f}"]))
    return "\n".join(lines)


def measured(found: Sequence[Outcome]) -> Sequence[Figures] | Refusal:
    """The numbers of all runs, or the first refusal if a run has none."""
    refusals = [outcome for outcome in found if isinstance(outcome, Refusal)]
    known = [outcome for outcome in found if isinstance(outcome, Figures)]
    return refusals[0] if refusals else known or Refusal("it was not run")


def spread(values: Sequence[float], digits: int) -> str:
    """`median (least - most)`, or the value itself if there is only one."""
    middle = f"{median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def _speed(known: Sequence[Figures]) -> str:
    return spread([one.speed for one in known], 2)


def _first(known: Sequence[Figures]) -> str:
    return spread([one.first_round_s for one in known], 1)


def _peak(known: Sequence[Figures]) -> str:
    return f"{max(one.peak_bytes for one in known) / 1e9:.2f}"


def _ratio(found: Sequence[Outcome], base: Sequence[Outcome]) -> str:
    """The median over repeats of the ratio within one, where the machine was as fast for both."""
    both = [(a, b) for a, b in zip(found, base, strict=False) if isinstance(a, Figures) and isinstance(b, Figures)]
    return f"{median(a.speed / b.speed for a, b in both):.2f}" if both else ""


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
