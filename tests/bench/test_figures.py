"""The arithmetic and the words of the benchmark's tables."""

from __future__ import annotations

import pytest

from fibec_ray.bench.figures import (
    Figures,
    Outcome,
    Refusal,
    Size,
    figures,
    measured,
    scale_table,
    speed_table,
    spread,
)


def at(speed: float, first_round_s: float = 5.0) -> Figures:
    return Figures(speed, first_round_s, peak_bytes=2_000_000_000, driver_bytes=500_000_000)


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_first_and_the_last_round_do_not_count() -> None:
    """Rounds of 9, 2, 3 and 50 seconds after 7 seconds of starting: 2 + 3 are measured."""
    found = figures([16.0, 18.0, 21.0, 71.0], 0.0, cohort_size=10, peak_bytes=1, driver_bytes=1)
    assert found.speed == pytest.approx(20 / 5) and found.first_round_s == 16.0


def test_a_run_without_a_measured_round_has_no_figures() -> None:
    with pytest.raises(AssertionError, match="too few rounds"):
        figures([1.0, 2.0], 0.0, 10, 1, 1)


def test_a_spread_is_the_median_and_the_range() -> None:
    assert spread([3.0, 1.0, 2.5], 1) == "2.5 (1.0 - 3.0)"
    assert spread([3.0], 2) == "3.00"


def test_ratios_are_taken_within_a_repeat() -> None:
    """The machine was half as fast in the second repeat, for both: the ratio is 1.5 all the same."""
    bare: list[Outcome] = [at(2.0), at(1.0)]
    table = cells(speed_table({"bare": bare, "ours": [at(3.0), at(1.5)]}, "bare", "AVX2"))
    assert table[0][0] == "AVX2"
    assert table[2] == ["bare", "1.50 (1.00 - 2.00)", "1.00", "5.0 (5.0 - 5.0)", "2.00"]
    assert table[3][1:3] == ["2.25 (1.50 - 3.00)", "1.50"]


def test_one_refused_run_takes_all_figures_of_its_contender() -> None:
    refused = Refusal("its update is another")
    found: list[Outcome] = [at(9.0), refused]
    assert measured(found) is refused
    table = cells(speed_table({"bare": [at(1.0), at(1.0)], "wrong": found}, "bare"))
    assert table[3] == ["wrong", "no figure: its update is another", "", "", ""]


def test_no_base_no_ratio() -> None:
    assert cells(speed_table({"ours": [at(3.0)]}, "bare"))[2][2] == ""


def test_sizes_have_a_line_each() -> None:
    table = cells(scale_table({Size(10_000, 10, 2): [at(3.0, 40.0)], Size(100, 10, 1): [Refusal("it failed")]}))
    assert all(len(line) == 7 for line in table)
    assert table[2] == ["10,000", "10", "2", "3.00", "40.0", "2.00", "0.50"]
    assert table[3][3] == "no figure: it failed"
