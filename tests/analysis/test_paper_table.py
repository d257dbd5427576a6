"""`fibec-ray paper-table` on small made-up logs: every number is worked out here by hand.

A round takes 10 simulated s, and so does the initialisation phase before the first one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from round_logs import small_run

from fibec_ray.analysis.figure import Curve, Series
from fibec_ray.analysis.panels import DARK, draw_panels
from fibec_ray.analysis.paper_style import Style
from fibec_ray.analysis.paper_table import paper_curves, paper_tables
from fibec_ray.analysis.settings import Choices, settings_of
from fibec_ray.cli.main import main
from fibec_ray.errors import UserError

OURS, BASE, SLOW = "fibecfed", "fedavg", "prompt tuning"
SCORES: dict[str, Mapping[int, float]] = {
    OURS: {0: 0.5, 2: 0.8, 5: 0.75},
    BASE: {0: 0.4, 2: 0.7, 4: 0.8, 5: 0.9},
    SLOW: {0: 0.3, 5: 0.4},
}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """make("trec", scores, seeds): a sweep's folder with one run for each variant and seed."""

    def made(task: str, scores: Mapping[str, Mapping[int, float]] = SCORES, folder: str = "", seeds: int = 1) -> Path:
        out = tmp_path / (folder or task)
        for variant, known in scores.items():
            for seed in range(seeds):
                run = out / variant.replace(" ", "-") / f"seed-{seed}"
                small_run(run, known, seed, variant, rounds=(-1, *known), task={"name": task})
                (run / "summary.json").write_text(f'{{"status": "finished", "metric": "accuracy", "task": "{task}"}}')
        entries = [{"name": name, "group": "", "folder": name.replace(" ", "-")} for name in scores]
        record = {"name": task, "seeds": list(range(seeds)), "reference": next(iter(scores)), "variants": entries}
        (out / "sweep.yaml").write_text(yaml.safe_dump(record))
        return out

    return made


def rows_of(*places: Path, **choices: Any) -> dict[str, Mapping[str, Any]]:
    chosen = Choices(**choices)
    return {row["variant"]: row for row in paper_tables(settings_of(places, chosen), chosen)[0].rows}


def cells_of(*places: Path, **choices: Any) -> dict[str, list[str]]:
    chosen = Choices(**choices)
    (table,) = paper_tables(settings_of(places, chosen), chosen)
    return {cells[0]: cells[1:] for cells in table.cells()}


def test_score_lead_time_and_speed_up_of_each_variant(make: Any) -> None:
    """Target .76, 95 % of .8: reached after 3 and 5 rounds, so 30 and 50 s; prompts take all 60 s and miss it."""
    assert cells_of(make("trec")) == {
        "variant": ["accuracy, %", "reference ahead, points", "seconds to target", "reference faster"],
        OURS: ["80.00", "–", "30", "–"],
        BASE: ["90.00", "-10.00", "50", "40.00 %"],
        SLOW: ["40.00", "+40.00", "–", "> 50.00 %"],
    }


def test_the_initialisation_phase_counts_if_asked(make: Any) -> None:
    """40 of 60 s, and 40 of 70."""
    found = cells_of(make("trec"), with_setup=True)
    assert [found[name][2:] for name in SCORES] == [["40", "–"], ["60", "33.33 %"], ["–", "> 42.86 %"]]


def test_last_scores_are_means_of_the_last_three_evaluations(make: Any) -> None:
    found = cells_of(make("trec"), pick="last")
    assert [found[name][0] for name in SCORES] == ["68.33", "80.00", "35.00"]


@pytest.mark.parametrize(
    ("anchors", "model", "says"),
    [
        ({"majority": 0.75, "own_majority": 0.77}, "personal", "trec: each device's own majority class reaches 0.7700"),
        ({"majority": 0.76, "own_majority": 0.77}, "global", "trec: the majority class reaches 0.7600"),
        ({"majority": 0.5, "own_majority": 0.77}, "global", ""),
        ({"majority": 0.5, "own_majority": 0.759}, "personal", ""),
        ({}, "personal", ""),
    ],
)
def test_a_target_within_reach_of_no_learning_is_noted(
    anchors: dict[str, float], model: str, says: str, make: Any
) -> None:
    """The target is 95 % of 0.8."""
    sweep = make("trec")
    for summary in sweep.rglob("summary.json"):
        summary.write_text(json.dumps(json.loads(summary.read_text()) | {"anchors": anchors}))
    chosen = Choices()
    settings = [replace(each, model=model) for each in settings_of([sweep], chosen)]
    notes = [note for note in paper_tables(settings, chosen)[0].notes if "without learning" in note]
    assert [note[: len(says)] for note in notes] == ([says] if says else [])


def test_another_target_and_another_reference(make: Any) -> None:
    """.85 is reached by FedAvg only, after 60 s. Against FedAvg, at .7: 30 s each. At .4 ours needs 10 s, as FedAvg."""
    out = make("trec", SCORES | {"brief": {0: 0.1}, "early": {0: 0.8}})
    missed = rows_of(out, target=0.85)
    assert (missed[OURS]["trec_time_s"], missed[BASE]["trec_time_s"], missed[BASE]["trec_faster"]) == (None, 60, None)
    against = cells_of(out, target=0.7, reference=BASE)
    assert against[OURS] == ["80.00", "+10.00", "30", "0.00 %"] and against[BASE][3] == "–"
    later = cells_of(out, target=0.8)
    assert later["early"][3] == "-200.00 %"
    assert later["brief"][2:] == ["–", "–"]  # it stops after 10 s, which bounds nothing


def test_several_tasks_have_a_table_for_each_quantity(make: Any, tmp_path: Path) -> None:
    """A folder of sweeps is read as a whole. A variant that one task lacks has an empty cell there."""
    make("runs/trec")
    make("runs/mr", {OURS: {5: 0.6}, BASE: {5: 0.5}})
    tables = {table.stem: table for table in paper_tables(settings_of([tmp_path / "runs"], Choices()), Choices())}
    assert list(tables) == ["paper-score", "paper-ahead", "paper-time", "paper-faster"]
    assert tables["paper-score"].cells() == [
        ["variant", "runs/mr", "runs/trec"], [OURS, "60.00", "80.00"], [BASE, "50.00", "90.00"], [SLOW, "–", "40.00"],
    ]  # fmt: skip
    assert tables["paper-faster"].notes[-2:] == (
        "Ahead: up to 40.00 points (prompt tuning, runs/trec), at worst -10.00 points (fedavg, runs/trec).",
        "Faster: up to more than 50.00 % (prompt tuning, runs/trec), at worst 40.00 % (fedavg, runs/trec).",
    )


def test_settings_are_named_by_task_or_else_by_folder(make: Any) -> None:
    both = [make("trec"), make("mr")]
    assert [setting.name for setting in settings_of(both, Choices())] == ["trec", "mr"]
    both = [make("trec", folder="devices"), make("trec", folder="pacing")]
    assert [setting.name for setting in settings_of(both, Choices())] == ["devices", "pacing"]
    both = [make("trec", folder="one/small"), make("trec", {OURS: {5: 0.6}}, folder="two/small")]
    (table, *_) = paper_tables(settings_of(both, Choices()), Choices())
    assert table.cells()[:2] == [["variant", *map(str, both)], [OURS, "80.00", "60.00"]]
    with pytest.raises(UserError, match="the same sweep is named twice; name each sweep once"):
        settings_of(both[:1] * 2, Choices())


def test_run_directories_make_one_setting(make: Any) -> None:
    out = make("trec")
    assert list(rows_of(out / OURS / "seed-0", out / BASE / "seed-0")) == [OURS, BASE]


def test_speed_up_compares_mean_times_of_common_seeds(make: Any, tmp_path: Path) -> None:
    """The reference takes 30 s with each seed. FedAvg takes 50 and 10 s, so 60 s too: it is as fast."""
    out = make("trec", seeds=2)
    run = out / BASE / "seed-1"
    for file in (run / "rounds").iterdir():
        file.unlink()
    small_run(run, {0: 0.9}, 1, BASE)
    row = rows_of(out)[BASE]
    assert (row["trec_time_s"], row["trec_faster"]) == (30, 0)


def test_leads_have_intervals_over_seeds(make: Any) -> None:
    """FedAvg's best rounds are .9 and .7, the reference's .8: leads of -10 and 10 points, s = 14.14, t = 12.71."""
    out = make("trec", seeds=2)
    run = out / BASE / "seed-1"
    for file in (run / "rounds").iterdir():
        file.unlink()
    small_run(run, {0: 0.7}, 1, BASE)
    found = cells_of(out)
    assert found[BASE][1] == "+0.00 ± 127.06" and found[SLOW][1] == "+40.00 ± 0.00" and found[OURS][1] == "–"
    (table,) = paper_tables(settings_of([out], Choices()), Choices())
    assert any("half of the 95 % interval" in note for note in table.notes)
    alone = paper_tables(settings_of([make("mr")], Choices()), Choices())[0]
    assert not any("±" in note for note in alone.notes)


def test_a_lead_that_rounds_to_nothing_has_no_minus(make: Any) -> None:
    found = cells_of(make("trec", SCORES | {"level": {2: 0.80000001}}))
    assert found["level"][1:] == ["+0.00", "30", "0.00 %"]


def test_a_time_says_how_many_seeds_reached_the_target(make: Any) -> None:
    out = make("trec", seeds=2)
    run = out / BASE / "seed-1"
    for file in (run / "rounds").iterdir():
        file.unlink()
    small_run(run, {0: 0.1, 5: 0.2}, 1, BASE)
    assert cells_of(out)[BASE][2] == "50 (1 of 2)" and cells_of(out)[OURS][2] == "30"
    (table,) = paper_tables(settings_of([out], Choices()), Choices())
    assert any(note.startswith("(1 of 3)") for note in table.notes)


def test_only_some_variants(make: Any) -> None:
    assert list(rows_of(make("trec"), only=(SLOW,))) == [OURS, SLOW]
    with pytest.raises(UserError, match="--only fedavk: no such variant here; did you mean 'fedavg'"):
        settings_of([make("trec")], Choices(only=("fedavk",)))


def test_a_folder_without_finished_runs_is_one_line(make: Any, tmp_path: Path, capsys: Any) -> None:
    out = make("trec", {OURS: {5: 0.5}})
    (out / OURS / "seed-0" / "summary.json").write_text('{"status": "running"}')
    assert main(["paper-table", str(out)]) == 2
    assert f"{out}: no sweep here has a finished run yet" in capsys.readouterr().err


def test_other_variants_are_shown_before_the_reference_has_finished(make: Any) -> None:
    out = make("trec")
    (out / OURS / "seed-0" / "summary.json").write_text('{"status": "running"}')
    found = cells_of(out)
    assert found[OURS] == ["–"] * 4 and found[BASE] == ["90.00", "–", "–", "–"]


def test_curves_go_over_the_same_time_as_the_table(make: Any) -> None:
    (curve,) = paper_curves(settings_of([make("trec")], Choices()), Choices())
    assert curve.series[0].points == ((10, 0.5), (30, 0.8), (60, 0.75))
    (curve,) = paper_curves(settings_of([make("trec")], Choices(with_setup=True)), Choices(with_setup=True))
    assert curve.series[0].points == ((20, 0.5), (40, 0.8), (70, 0.75))


def test_the_command_prints_tables_and_writes_them_with_the_figure(make: Any, tmp_path: Path, capsys: Any) -> None:
    places = [str(make("trec")), str(make("mr"))]
    assert main(["paper-table", *places, "--out", str(tmp_path / "out"), "--format", "csv"]) == 0
    columns = ("score", "ahead", "ahead_half_width", "time_s", "faster", "at_least", "num_reached", "num_seeds")
    assert ",".join(["variant", *(f"trec_{name}" for name in columns), "mr_score"]) in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "paper.md", "paper.tex", "paper.pdf", "paper.svg", "paper.png",
        "paper-score.csv", "paper-ahead.csv", "paper-time.csv", "paper-faster.csv",
    }  # fmt: skip
    assert (tmp_path / "out" / "paper.svg").read_text().count("trec") >= 1


def test_panels_have_a_light_and_a_dark_look_and_the_same_bytes_each_time() -> None:
    """14 variants: the 13th has the colour of the first, with hollow markers."""
    many = tuple(Series(f"method {at}", ((0, 0.1), (5, 0.02 * at + 0.5))) for at in range(14))
    curves, style = [Curve("trec", "trec", "", "s", "accuracy", many)], Style(formats=("svg",))
    light, dark = draw_panels(curves, "t", style)["svg"], draw_panels(curves, "t", style, DARK)["svg"]
    assert b"#0072b2" in light.lower() and b"#0072b2" not in dark.lower() and b"#4aa8e8" in dark.lower()
    assert draw_panels(curves, "t", style)["svg"] == light and b"method 13" in light
