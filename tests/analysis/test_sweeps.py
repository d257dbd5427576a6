"""The comparison of a sweep's runs, on small made-up logs: every number is worked out here by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fibec_ray.analysis.comparison import Comparison, Line, compare
from fibec_ray.analysis.statistics import Paired
from fibec_ray.analysis.sweep_table import write_table
from fibec_ray.errors import RunDirError
from fibec_ray.roundlog.schema import ROUNDS
from fibec_ray.roundlog.writer import RoundLog

METADATA = {"run_id": "r", "seed": "0", "git_commit": "", "config": ""}
T2, T1 = 4.302653, 12.706205
"""0.975 quantiles of Student's t with two degrees of freedom and with one, from a printed table"""


def a_sweep(out: Path, reference: str = "base", seeds: tuple[int, ...] = (0, 1, 2), **groups: str) -> Path:
    """The record of a sweep; groups: {variant: title of its group, or ''}"""
    variants = [
        {"name": name, "group": group, "folder": f"of-{name}", "overrides": []} for name, group in groups.items()
    ]
    record = {"name": "small", "seeds": list(seeds), "reference": reference, "variants": variants}
    out.mkdir(exist_ok=True)
    (out / "sweep.yaml").write_text(yaml.safe_dump(record))
    return out


def a_run(
    out: Path, variant: str, seed: int, personal: float | None, shared: float | None = 0.25, status: str = "finished"
) -> None:
    """Six rounds after the initialisation phase. Evaluated after all but the first and the fifth: 0, then the score
    - 0.1, + 0.1 and + 0.3 - so the last three have the mean score + 0.1; `shared` is what the global model has in all.
    Costs are those of `cost`."""
    run_dir = out / f"of-{variant}" / f"seed-{seed}"
    log = RoundLog(run_dir, METADATA)
    offsets = {1: None, 2: -0.1, 3: 0.1, 5: 0.3}
    for round_ in range(-1, 6):
        row: dict[str, Any] = {column.name: None if column.nullable else 0 for column in ROUNDS} | cost(round_, seed)
        if round_ in offsets and personal is not None:
            offset = offsets[round_]
            row["personal_accuracy"] = 0.0 if offset is None else personal + offset
        if round_ in offsets:
            row["global_accuracy"] = shared
        log.append(row | {"round": round_}, [], [])
    summary = {"status": status, "anchors": {"majority": 0.2, "own_majority": 0.4 + 0.1 * seed}}
    (run_dir / "summary.json").write_text(json.dumps(summary))


def cost(round_: int, seed: int) -> dict[str, float]:
    """In the end 7 MB, 70 samples, 21 TFLOP and 70 s; another 10 s of real time for each seed."""
    done = round_ + 2
    return {
        "bytes_total": 1_000_000 * done,
        "num_samples_total": 10 * done,
        "flops": 3e12,
        "sim_time_s": 10.0 * done,
        "wall_time_s": 1.0 * done + 10 * seed,
    }


def lines_of(comparison: Comparison) -> dict[str, Line]:
    return {line.variant: line for line in comparison.lines}


def paired(comparison: Comparison, variant: str) -> Paired | None:
    """Personal scores against the reference's."""
    return comparison.paired(comparison.line(variant), lambda run: run.personal)


def table_rows(markdown: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in markdown.splitlines() if line[:1] == "|"]


@pytest.fixture
def three_seeds(tmp_path: Path) -> Path:
    """base has .5 .6 .7; near +.1 +.05 +.15, whose deviation is .05; far +.10 +.11 +.12, whose deviation is .01."""
    out = a_sweep(tmp_path, base="", near="1 pacing", far="2 mask")
    for seed, base, near, far in ((0, 0.5, 0.6, 0.6), (1, 0.6, 0.65, 0.71), (2, 0.7, 0.85, 0.82)):
        a_run(out, "base", seed, base)
        a_run(out, "near", seed, near, shared=0.3)
        a_run(out, "far", seed, far, shared=None)
    return out


def test_a_score_is_the_mean_of_the_last_evaluations_and_then_of_seeds(three_seeds: Path) -> None:
    lines = lines_of(compare(three_seeds))
    assert lines["base"].number("personal") == pytest.approx((0.6 + 0.7 + 0.8) / 3)
    assert lines["near"].number("personal") == pytest.approx((0.7 + 0.75 + 0.95) / 3)
    assert [line.number("shared") for line in lines.values()] == [0.25, pytest.approx(0.3), None]


@pytest.mark.parametrize(("recent", "expected"), [(1, 0.6 + 0.3), (2, 0.6 + 0.2), (3, 0.6 + 0.1), (9, 0.525)])
def test_how_many_evaluations_is_a_parameter(recent: int, expected: float, three_seeds: Path) -> None:
    """With more than there are, all count: (0 + .5 + .7 + .9) / 4 = .525 around the mean score .6."""
    assert lines_of(compare(three_seeds, recent))["base"].number("personal") == pytest.approx(expected)


def test_best_scores_can_be_compared(three_seeds: Path) -> None:
    """The highest evaluation is the score + .3 in every run, so differences are those of the scores."""
    rows = {row[0]: row for row in table_rows(write_table(three_seeds, pick="best"))}
    assert [rows[name][2] for name in ("base", "near", "far")] == ["0.9000", "1.0000", "**1.0100**"]
    assert rows["far"][4] == "+0.1100 ± 0.0248"
    assert "the highest evaluation of a run" in (three_seeds / "table.md").read_text()


def test_differences_are_paired_by_seed(three_seeds: Path) -> None:
    """Unpaired, the seeds' own spread of .1 would drown the differences of `far`."""
    near, far, base = (paired(compare(three_seeds), name) for name in ("near", "far", "base"))
    assert near and far and base is None
    assert (near.mean, far.mean) == (pytest.approx(0.1), pytest.approx(0.11))
    assert near.half_width == pytest.approx(T2 * 0.05 / 3**0.5, rel=1e-5)
    assert far.half_width == pytest.approx(T2 * 0.01 / 3**0.5, rel=1e-5)
    assert (near.matters, far.matters) == (False, True)  # .124 against .1, and .025 against .11


def test_costs_are_totals_of_a_run(three_seeds: Path) -> None:
    line = lines_of(compare(three_seeds))["near"]
    assert (line.num_seeds, line.number("num_bytes"), line.number("num_samples"), line.number("flops")) == (
        3,
        7e6,
        70,
        21e12,
    )
    assert (line.number("sim_time_s"), line.number("wall_time_s")) == (70, pytest.approx(17))  # 7, 17 and 27 s


def test_only_finished_runs_count_and_only_seeds_in_common_are_paired(tmp_path: Path) -> None:
    out = a_sweep(tmp_path, base="", other="")
    for seed in (0, 1):
        a_run(out, "base", seed, 0.5)
    a_run(out, "base", 2, 0.1, status="failed")
    for seed, score in ((0, 0.52), (1, 0.54), (2, 0.6)):
        a_run(out, "other", seed, score)
    lines = lines_of(compare(out))
    assert (lines["base"].num_seeds, lines["other"].num_seeds) == (2, 3)
    assert lines["other"].number("personal") == pytest.approx((0.62 + 0.64 + 0.7) / 3)
    found = paired(compare(out), "other")
    assert found and (found.num_pairs, found.mean) == (2, pytest.approx(0.03))
    assert found.half_width == pytest.approx(T1 * 0.01, rel=1e-5)  # deviation .01 sqrt 2, over sqrt 2


def test_one_pair_has_a_difference_and_no_interval(tmp_path: Path) -> None:
    out = a_sweep(tmp_path, seeds=(4,), base="", other="")
    a_run(out, "base", 4, 0.5)
    a_run(out, "other", 4, 0.4)
    found = paired(compare(out), "other")
    assert found and (found.half_width, found.matters) == (None, None)
    assert table_rows(write_table(out))[-1][4:6] == ["-0.1000", "?"]


def test_without_the_reference_there_is_no_difference(tmp_path: Path) -> None:
    out = a_sweep(tmp_path, base="", other="")
    a_run(out, "other", 0, 0.4)
    rows = {row[0]: row for row in table_rows(write_table(out))}
    assert rows["base"] == ["base", "0", "–", "–", "reference", "", "–", "–", "–", "–", "–"]
    assert rows["other"][1:6] == ["1", "0.5000", "0.2500", "–", "?"]


def test_a_run_without_personal_scores_still_has_costs(tmp_path: Path) -> None:
    out = a_sweep(tmp_path, seeds=(0,), base="")
    a_run(out, "base", 0, None)
    line = compare(out).lines[0]
    assert (line.number("personal"), line.number("shared"), line.number("num_samples")) == (None, 0.25, 70)


def test_the_markdown_has_groups_as_headings_and_says_the_anchors(three_seeds: Path) -> None:
    text = write_table(three_seeds)
    assert (three_seeds / "table.md").read_text(encoding="utf-8") == text
    head, _, *rows = table_rows(text)
    assert (head[4], head[8]) == ("personal − base", "TFLOP")
    assert rows[0] == ["base", "3", "0.7000", "0.2500", "reference", "", "7", "70", "21", "70", "17"]
    assert rows[1] == ["**1 pacing**", *[""] * 10]
    assert rows[2] == ["near", "3", "0.8000", "**0.3000**", "+0.1000 ± 0.1242", "no", "7", "70", "21", "70", "17"]
    assert rows[3] == ["**2 mask**", *[""] * 10]
    assert rows[4][:6] == ["far", "3", "**0.8100**", "–", "+0.1100 ± 0.0248", "yes"]
    assert "0.2000 the majority class, 0.5000 each device's own majority class" in text  # .4 .5 .6
    assert "last 3 evaluations" in text
    assert len({len(line) for line in text.splitlines() if line.startswith("|")}) == 1


def test_regressions_are_compared_by_r2(tmp_path: Path) -> None:
    """Which is in the log as the task's own metric; there is no accuracy."""
    out = a_sweep(tmp_path, seeds=(0, 1), base="", other="")
    for seed in (0, 1):
        for variant, score in (("base", 0.5), ("other", 0.75)):
            log = RoundLog(out / f"of-{variant}" / f"seed-{seed}", METADATA)
            row = {column.name: None if column.nullable else 0 for column in ROUNDS} | {"round": 0}
            log.append(row | {"personal_metric": score, "global_metric": score - 1}, [], [])
            summary = {"status": "finished", "metric": "r2", "anchors": {"mean": -0.01, "own_mean": 0.25}}
            (out / f"of-{variant}" / f"seed-{seed}" / "summary.json").write_text(json.dumps(summary))
    text = write_table(out)
    assert table_rows(text)[-1][:6] == ["other", "2", "**0.7500**", "**-0.2500**", "+0.2500 ± 0.0000", "yes"]
    assert "Scores are r2:" in text and "R2 without learning" in text and "0.2500 each device's own mean" in text
    assert "accuracy" not in text.lower() and "accuracies" not in text.lower()
    assert (out / "table.csv").read_text().splitlines()[0].split(",")[3:5] == ["personal_r2", "global_r2"]


@pytest.mark.parametrize(
    ("metric", "score", "anchors"),
    [
        ("span_f1", 0.5, {}),
        ("mcc", 0.5, {"majority": 0.0, "own_majority": 0.1}),
        ("accuracy", 0.9, {"majority": 0.79, "own_majority": 0.8}),
    ],
)
def test_runs_are_judged_by_the_metric_of_their_task_beside_anchors_in_this_metric(
    metric: str, score: float, anchors: dict[str, float], tmp_path: Path
) -> None:
    out = a_sweep(tmp_path, seeds=(0,), base="")
    run = out / "of-base" / "seed-0"
    row = {column.name: None if column.nullable else 0 for column in ROUNDS} | {"round": 0}
    RoundLog(run, METADATA).append(row | {"personal_metric": 0.5, "personal_accuracy": 0.9}, [], [])
    found = {"majority": 0.79, "own_majority": 0.8}
    if metric == "mcc":
        found |= {"majority_metric": 0.0, "own_majority_metric": 0.1}
    summary = {"status": "finished", "metric": metric, "anchors": found}
    (run / "summary.json").write_text(json.dumps(summary))
    comparison = compare(out)
    assert comparison.score == metric
    assert comparison.score_of(comparison.line("base"), "personal") == score
    assert comparison.anchors == anchors
    assert ("without learning" in write_table(out)) == bool(anchors)


def test_variants_without_a_group_stand_above_all_headings(tmp_path: Path) -> None:
    rows = table_rows(write_table(a_sweep(tmp_path, base="", near="1 pacing", other="")))
    assert [row[0] for row in rows[2:]] == ["base", "other", "**1 pacing**", "near"]


def test_a_bar_in_a_name_does_not_end_its_cell(tmp_path: Path) -> None:
    assert "| a\\|b " in write_table(a_sweep(tmp_path, reference="a|b", **{"a|b": ""}))


def test_the_csv_has_plain_units_and_all_digits(three_seeds: Path) -> None:
    write_table(three_seeds)
    with (three_seeds / "table.csv").open(encoding="utf-8", newline="") as file:
        base, near, far = csv.DictReader(file)
    assert (base["variant"], base["group"], base["difference"], base["matters"]) == ("base", "", "", "")
    assert (near["group"], near["seeds"], near["pairs"], near["matters"]) == ("1 pacing", "3", "3", "no")
    assert float(near["half_width"]) == pytest.approx(0.124207, abs=1e-6)
    assert (float(near["bytes"]), float(near["flop"]), float(near["sim_time_s"])) == (7e6, 21e12, 70.0)
    assert (far["global_accuracy"], far["matters"]) == ("", "yes")


def test_a_folder_that_holds_no_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="no sweep here"):
        write_table(tmp_path)
    (tmp_path / "sweep.yaml").write_text("config: x.yaml\nvariants: {a: []}\n")
    with pytest.raises(RunDirError, match=r"sweep\.yaml: is not the record of a sweep"):
        write_table(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]
