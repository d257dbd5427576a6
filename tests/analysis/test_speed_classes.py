"""Accuracy by speed class: in a run's report and in comparisons of runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from round_logs import metadata, rounds_row, small_run

from fibec_ray.analysis.cards import cards_of, figures_of
from fibec_ray.analysis.compare import Choices, compare_runs
from fibec_ray.analysis.figure import Curve
from fibec_ray.analysis.formats import markdown
from fibec_ray.analysis.log import open_run
from fibec_ray.analysis.overlay import overlay_cards
from fibec_ray.analysis.run_tables import tables_of
from fibec_ray.analysis.speed_classes import ClassResult, class_results
from fibec_ray.analysis.tables import RunTables
from fibec_ray.reports import DeviceReport
from fibec_ray.roundlog.writer import RoundLog


def run_of_classes(folder: Path, slow: float = 0.25, seed: int = 0, method: str = "fedavg") -> Path:
    """Devices 0 and 1 are slow, with 10 and 30 test samples; device 2 is fast. Device 1 never takes part."""
    log = RoundLog(folder, metadata(f"{method}-{seed}", seed))
    log.append(rounds_row(-1), [], [])
    for round_ in (0, 1):
        devices = [
            DeviceReport(round_, 0, num_samples=10, sim_time_s=8.0 + round_, energy_j=5.0),
            DeviceReport(round_, 2, num_samples=10, sim_time_s=2.0, energy_j=1.0),
        ]
        evaluations: list[dict[str, Any]] = [
            {"device": 0, "num_samples": 10, "accuracy": slow + 0.3, "speed_class": "slow"},
            {"device": 1, "num_samples": 30, "accuracy": slow - 0.1, "speed_class": "slow"},
            {"device": 2, "num_samples": 10, "accuracy": 0.5 + 0.1 * round_, "speed_class": "fast"},
        ]
        rest = {"round": round_, "trained": True, "loss": 1.0}
        row = rounds_row(round_, personal_accuracy=0.5, global_accuracy=0.1, num_dropped=round_)
        log.append(row, devices, [], [rest | each for each in evaluations])
    described = {"method": method, "task": "trec", "metric": "accuracy", "seed": seed, "rounds": 2}
    (folder / "summary.json").write_text(json.dumps(described | {"status": "finished", "anchors": {}}))
    return folder


def test_classes_by_hand(tmp_path: Path) -> None:
    """Slow: (10 x 0.55 + 30 x 0.15) / 40 = 0.25, two device-rounds of 8 and 9 s, 10 J."""
    found = class_results(RunTables.read(run_of_classes(tmp_path / "run")))
    assert found == [
        ClassResult("slow", 2, pytest.approx(0.25), 2, 8.5, 10.0),
        ClassResult("fast", 1, pytest.approx(0.6), 2, 2.0, 2.0),
    ]


def test_the_report_has_a_figure_and_a_table_of_classes(tmp_path: Path) -> None:
    folder = run_of_classes(tmp_path / "run")
    tables = RunTables.read(folder)
    figures = {figure.stem: figure for figure in figures_of(cards_of(tables, {}, "accuracy"))}
    curve = figures["accuracy_by_class"]
    assert isinstance(curve, Curve)
    assert {series.label: series.points for series in curve.series} == {
        "slow": ((1, pytest.approx(0.25)), (2, pytest.approx(0.25))),
        "fast": ((1, 0.5), (2, pytest.approx(0.6))),
    }
    assert "num_dropped" in figures and "accuracy_by_energy" in figures
    shown = {
        table.stem: " ".join(markdown(table).split())
        for each in tables_of(open_run(folder), tables).values()
        for table in each
    }
    assert "| slow | 2 | 0.2500 | 2 | 8.5 s | 10 J |" in shown["speed_classes"]
    assert "| dropped |" in shown["cost"] and "| 6 kJ |" in shown["cost"]


def test_a_log_without_classes_or_drop_outs_shows_neither(tmp_path: Path) -> None:
    tables = RunTables.read(small_run(tmp_path / "run", {2: 0.5}))
    stems = {figure.stem for figure in figures_of(cards_of(tables, {}, "accuracy"))}
    assert class_results(tables) == [] and not stems & {"accuracy_by_class", "num_dropped"}


def test_compare_shows_classes_and_energy(tmp_path: Path) -> None:
    """Of the second method the slow devices are better by 0.1, in both seeds."""
    runs = [run_of_classes(tmp_path / f"a{seed}", 0.25, seed) for seed in (0, 1)]
    runs += [run_of_classes(tmp_path / f"b{seed}", 0.35, seed, "fedprox") for seed in (0, 1)]
    found = {table.stem: table for table in compare_runs(runs, Choices())}
    rows = {row["variant"]: row for row in found["speed_classes"].rows}
    assert rows["fedavg"]["class_slow"] == pytest.approx(0.25) and rows["fedprox"]["class_slow"] == pytest.approx(0.35)
    assert rows["fedprox"]["class_fast"] == pytest.approx(0.6)
    assert [row["energy_j"] for row in found["costs"].rows] == [6e3, 6e3]
    assert "| kJ |" in " ".join(markdown(found["costs"]).split())


def test_curves_have_an_axis_where_some_run_knows_it(tmp_path: Path) -> None:
    """A log of an earlier release has no energy; only the second run has an epsilon, 1 and then 2."""
    runs = {name: RunTables.read(run_of_classes(tmp_path / name)) for name in ("old", "private")}
    unknown = pl.lit(None, pl.Float64)
    old = runs["old"].rounds.with_columns(unknown.alias("energy_total_j"), unknown.alias("epsilon"))
    private = runs["private"].rounds.with_columns(pl.Series("epsilon", [None, 1.0, 2.0]))
    tables = {"old": [replace(runs["old"], rounds=old)], "private": [replace(runs["private"], rounds=private)]}
    figures = {figure.stem: figure for figure in figures_of(overlay_cards(tables, "accuracy"))}
    for axis, xs in (("energy", (4.0, 6.0)), ("epsilon", (1.0, 2.0))):
        curve = figures[f"personal_accuracy_by_{axis}"]
        assert isinstance(curve, Curve)
        assert {series.label: tuple(x for x, _ in series.points) for series in curve.series} == {"private": xs}
    stems = {figure.stem for figure in figures_of(cards_of(tables["old"][0], {}, "accuracy"))}
    assert "accuracy_by_rounds" in stems and not stems & {"accuracy_by_energy", "accuracy_by_epsilon"}
    assert "accuracy_by_epsilon" in {
        figure.stem for figure in figures_of(cards_of(tables["private"][0], {}, "accuracy"))
    }


def test_staleness_has_a_figure_where_there_is_any(tmp_path: Path) -> None:
    tables = RunTables.read(run_of_classes(tmp_path / "run"))
    for values, shown in (([None, 0.0, 0.0], False), ([None, 0.0, 0.5], True)):
        stale = replace(tables, rounds=tables.rounds.with_columns(pl.Series("mean_staleness", values)))
        stems = {figure.stem for figure in figures_of(cards_of(stale, {}, "accuracy"))}
        assert ("mean_staleness" in stems) == shown
