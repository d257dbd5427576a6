"""`compare` on small made-up logs: every number is worked out here by hand."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from round_logs import small_run

from fibec_ray.analysis.compare import Choices, compare_runs, write_all, written
from fibec_ray.analysis.compare_tables import ratio_text
from fibec_ray.analysis.formats import Column, Table, as_csv, latex, markdown
from fibec_ray.analysis.statistics import Mean, Paired, geometric_mean, holm
from fibec_ray.errors import UserError
from fibec_ray.roundlog.writer import RoundLog

T2 = 4.302653
"""0.975 quantile of Student's t with two degrees of freedom, from a printed table"""


def tables_of(*runs: Path, **choices: Any) -> dict[str, Table]:
    return {table.stem: table for table in compare_runs(runs, Choices(**choices))}


def rows_of(table: Table) -> dict[str, Mapping[str, Any]]:
    return {row["variant"]: row for row in table.rows}


def target_of(target: float, *runs: Path, **choices: Any) -> dict[str, Mapping[str, Any]]:
    return rows_of(tables_of(*runs, targets=(target,), **choices)[f"target-{target:g}".replace(".", "_")])


# --- to a target


def test_the_first_evaluation_that_is_as_good_counts_also_of_ties(tmp_path: Path) -> None:
    """0.6 is reached exactly after round 2, and again after 4: 3 rounds, 4 x 10 s, 4 MB, 400 samples and 8 kJ, all
    with those of the initialisation phase. A later fall below it changes nothing."""
    run = small_run(tmp_path / "a", {0: 0.3, 2: 0.6, 3: 0.5, 4: 0.6})
    row = target_of(0.6, run)["fibecfed"]
    assert (row["reached"], row["seeds"]) == (1, 1)
    assert (row["rounds"], row["sim_time_s"], row["num_bytes"], row["num_samples"]) == (3, 40, 4e6, 400)
    assert row["energy_j"] == 8e3


def test_a_target_that_is_never_reached_has_no_cost(tmp_path: Path) -> None:
    """Of FedAvg's two seeds one gets there, after 2 rounds; only that one is averaged, with a note."""
    runs = [small_run(tmp_path / f"f{seed}", {1: 0.9}, seed) for seed in (0, 1)]
    runs += [small_run(tmp_path / f"a{seed}", {1: score}, seed, "fedavg") for seed, score in ((0, 0.7), (1, 0.9))]
    runs += [small_run(tmp_path / f"l{seed}", {1: 0.1}, seed, "local") for seed in (0, 1)]
    rows = target_of(0.8, *runs)
    assert [(row["reached"], row["seeds"]) for row in rows.values()] == [(2, 2), (1, 2), (0, 2)]
    assert (rows["fedavg"]["rounds"], rows["fedavg"]["pairs"], rows["fedavg"]["sim_time_s_speed_up"]) == (2, 1, 1.0)
    assert rows["local"]["rounds"] is None and rows["local"]["sim_time_s_speed_up"] is None


def test_the_speed_up_is_the_geometric_mean_over_seeds(tmp_path: Path) -> None:
    """The reference takes 2 and 6 rounds, so 30 and 70 s; the other 4 and 1, so 50 and 20 s: sqrt(3/5 * 7/2)."""
    ends = {"fibecfed": (1, 5), "fedavg": (3, 0)}
    runs = [
        small_run(tmp_path / f"{method}{seed}", {end: 0.5}, seed, method)
        for method, both in ends.items()
        for seed, end in enumerate(both)
    ]
    row = target_of(0.5, *runs)["fedavg"]
    assert row["sim_time_s_speed_up"] == pytest.approx(math.sqrt(3 / 5 * 7 / 2))
    assert row["rounds_speed_up"] == pytest.approx(math.sqrt(2 / 4 * 6 / 1))
    assert (row["rounds"], row["sim_time_s"]) == (2.5, 35)


def test_time_counts_with_and_without_the_setup_phase(tmp_path: Path) -> None:
    """Both reach .5 after 40 s. The first log has a setup phase of 10 s. The second has none and starts with round 0.
    With the setup both are as fast; without it the first is 40 / 30 times as fast."""
    runs = [small_run(tmp_path / "a", {2: 0.5}), small_run(tmp_path / "b", {2: 0.5}, 0, "fedavg", rounds=range(6))]
    tables = tables_of(*runs, targets=(0.5,), reference="fedavg")
    with_setup, without = (rows_of(tables["target-0_5"])[name] for name in ("fibecfed", "fedavg"))
    assert [(row["sim_time_s"], row["training_time_s"]) for row in (with_setup, without)] == [(40, 30), (40, 40)]
    assert with_setup["sim_time_s_speed_up"] == 1
    assert with_setup["training_time_s_speed_up"] == pytest.approx(4 / 3)
    assert "| s after setup |" in written([tables["target-0_5"]], "markdown")
    assert [row["training_time_s"] for row in tables["costs"].rows] == [60, 70]


def test_a_score_before_training_took_no_time_after_the_setup(tmp_path: Path) -> None:
    row = target_of(0.5, small_run(tmp_path / "a", {-1: 0.5}))["fibecfed"]
    assert (row["rounds"], row["sim_time_s"], row["training_time_s"]) == (0, 10, 0)


def test_time_after_setup_is_shown_only_where_there_is_a_setup(tmp_path: Path) -> None:
    run = small_run(tmp_path / "a", {2: 0.5}, rounds=range(6))
    assert "after setup" not in written(compare_runs([run], Choices()), "markdown").lower()


def test_missing_rounds_leave_costs_as_the_log_has_them(tmp_path: Path) -> None:
    """Round 1 was lost from the log; costs are cumulative columns, not sums over rows."""
    run = small_run(tmp_path / "a", {0: 0.1, 2: 0.6}, rounds=(-1, 0, 2, 3))
    row = target_of(0.6, run)["fibecfed"]
    assert (row["rounds"], row["sim_time_s"], row["num_bytes"]) == (3, 40, 4e6)


def test_a_resumed_run_counts_the_rounds_that_it_did_again_once(tmp_path: Path) -> None:
    """Killed after round 3, resumed from round 2: the first rounds 2 and 3 are forgotten with their score of 0.9."""
    run = small_run(tmp_path / "a", {2: 0.9, 3: 0.9}, rounds=range(-1, 4))
    from round_logs import metadata, rounds_row

    log = RoundLog(run, metadata("fibecfed-0"))
    log.rewind(2)
    for round_ in range(2, 6):
        log.append(rounds_row(round_, personal_accuracy=0.5 + 0.1 * (round_ == 5)), [], [])
    tables = tables_of(run, targets=(0.6,))
    row = rows_of(tables["target-0_6"])["fibecfed"]
    assert (row["rounds"], row["num_samples"]) == (6, 700)
    assert rows_of(tables["scores"])["fibecfed"]["personal_best"] == 0.6
    assert rows_of(tables["costs"])["fibecfed"]["num_bytes"] == 7e6


def test_the_default_target_is_95_percent_of_the_best_of_the_reference(tmp_path: Path) -> None:
    """Means of the best, .8 and .9: .85. 95 % of that is .8075, so .80."""
    runs = [small_run(tmp_path / f"{seed}", {1: score, 4: 0.1}, seed) for seed, score in ((0, 0.8), (1, 0.9))]
    assert [stem for stem in tables_of(*runs) if stem.startswith("target")] == ["target-0_8"]


def test_the_global_model_can_be_asked_for(tmp_path: Path) -> None:
    run = small_run(tmp_path / "a", {1: 0.7}, model="global")
    assert target_of(0.7, run)["fibecfed"]["reached"] == 1  # no personal score anywhere: the global one by itself
    assert target_of(0.7, run, model="personal")["fibecfed"]["reached"] == 0


def test_scores_that_are_not_numbers_reach_nothing(tmp_path: Path) -> None:
    run = small_run(tmp_path / "a", {0: math.nan, 1: 0.4})
    assert target_of(0.4, run)["fibecfed"]["rounds"] == 2
    assert rows_of(tables_of(run)["scores"])["fibecfed"]["personal_best"] == 0.4


# --- scores and differences


def test_differences_are_paired_and_tested(tmp_path: Path) -> None:
    """+.10 +.11 +.12: mean .11, deviation .01, t = .11 / (.01 / sqrt 3) = 19.05; p from a table: .0027."""
    base, other = (0.5, 0.6, 0.7), (0.6, 0.71, 0.82)
    runs = [small_run(tmp_path / f"b{s}", {1: score}, s, "fedavg") for s, score in enumerate(base)]
    runs += [small_run(tmp_path / f"o{s}", {1: score}, s, "fipa") for s, score in enumerate(other)]
    row = rows_of(tables_of(*runs)["scores"])["fipa"]
    assert (row["difference"], row["pairs"]) == (pytest.approx(0.11), 3)
    assert row["difference_half_width"] == pytest.approx(T2 * 0.01 / 3**0.5, rel=1e-5)
    assert row["p"] == pytest.approx(0.00274, abs=1e-5) and row["p_holm"] == row["p"]
    assert row["personal_final"] == pytest.approx(0.71)
    assert row["personal_final_half_width"] == pytest.approx(T2 * 0.11 / 3**0.5, rel=1e-5)


def test_best_scores_can_be_compared_instead_of_final_ones(tmp_path: Path) -> None:
    """Final: .5 and the mean of .9, .3 and .3. Best: .5 and .9."""
    runs = [small_run(tmp_path / "b", {1: 0.5}, 0, "fedavg")]
    runs += [small_run(tmp_path / "o", {0: 0.9, 1: 0.3, 2: 0.3}, 0, "fipa")]
    last, best = (tables_of(*runs, pick=pick)["scores"] for pick in ("last", "best"))
    assert rows_of(last)["fipa"]["difference"] == pytest.approx(0)
    assert rows_of(best)["fipa"]["difference"] == pytest.approx(0.4)
    assert "personal, best − fedavg" in written([best], "markdown")


def test_another_reference_turns_the_sign(tmp_path: Path) -> None:
    runs = [small_run(tmp_path / name, {1: score}, 0, name) for name, score in (("a", 0.5), ("b", 0.8))]
    assert rows_of(tables_of(*runs)["scores"])["b"]["difference"] == pytest.approx(0.3)
    assert rows_of(tables_of(*runs, reference="b")["scores"])["a"]["difference"] == pytest.approx(-0.3)
    with pytest.raises(UserError, match="no variant 'c' to compare with"):
        tables_of(*runs, reference="c")


def test_holm_by_hand() -> None:
    """Of three: .01 x 3, .03 x 2, and .04 x 1, which may not be below .06."""
    adjusted = holm({"a": 0.04, "b": 0.01, "c": 0.03})
    assert adjusted == {"b": pytest.approx(0.03), "c": pytest.approx(0.06), "a": pytest.approx(0.06)}
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0} and holm({}) == {}


def test_differences_that_are_all_equal_have_no_spread() -> None:
    same, none = Paired.of([0.25, 0.25]), Paired.of([0.0, 0.0])
    assert same and none and (same.half_width, same.p, none.p) == (0.0, 0.0, 1.0)
    assert Paired.of([]) is None and Mean.of([]) is None and geometric_mean([]) is None
    single = Paired.of([0.5])
    assert single and (single.half_width, single.p) == (None, None)


# --- what may be compared


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"data": {"path": "b", "max_length": 32}}, r"data\.path is 'a' in fedavg, seed 0 and 'b' in fipa, seed 0"),
        ({"partition": {"kind": "dirichlet_label", "alpha": 0.1}}, r"partition\.alpha is 1\.0 .* and 0\.1"),
        ({"backbone": {"name": "tiny-llama"}}, r"backbone\.name is 'minilm'"),
        ({"num_devices": 20}, "num_devices is 10"),
        ({"task": {"name": "sst2"}}, r"task\.name"),
    ],
)
def test_runs_of_other_data_partition_or_model_are_refused(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    runs = [small_run(tmp_path / "a", {1: 0.5}, 0, "fedavg"), small_run(tmp_path / "b", {1: 0.6}, 0, "fipa", **changed)]
    with pytest.raises(UserError, match=f"not comparable: {named}.*--anyway"):
        tables_of(*runs)
    assert tables_of(*runs, anyway=True)["scores"].rows


def test_a_run_that_has_not_finished_is_refused(tmp_path: Path) -> None:
    runs = [small_run(tmp_path / "a", {1: 0.5}), small_run(tmp_path / "b", {1: 0.6}, method="b", status="running")]
    with pytest.raises(UserError, match="b, seed 0 has the status 'running'"):
        tables_of(*runs)
    assert len(tables_of(*runs, anyway=True)["scores"].rows) == 2


def test_a_sweep_without_a_finished_run_has_lines_without_numbers(tmp_path: Path) -> None:
    small_run(tmp_path / "one" / "seed-0", {1: 0.5}, status="running")
    record = {"name": "s", "seeds": [0], "reference": "one"}
    variants = [{"name": "one", "group": "", "folder": "one"}]
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(record | {"variants": variants}))
    assert "| one     |     0 |" in written(compare_runs([tmp_path], Choices()), "markdown")


def test_a_sweep_brings_its_names_and_its_reference(tmp_path: Path) -> None:
    for name, score in (("one", 0.5), ("two", 0.75)):
        small_run(tmp_path / name / "seed-0", {1: score})
    variants = [{"name": f"the {name}", "group": "", "folder": name} for name in ("one", "two")]
    record = {"name": "s", "seeds": [0], "reference": "the two", "variants": variants}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(record))
    assert rows_of(tables_of(tmp_path)["scores"])["the one"]["difference"] == -0.25


def test_two_settings_of_one_method_are_told_apart_by_name_or_folder(tmp_path: Path) -> None:
    by_name = [small_run(tmp_path / name, {1: 0.5}, name=name) for name in ("a", "b")]
    assert list(rows_of(tables_of(*by_name)["scores"])) == ["a", "b"]
    by_folder = [small_run(tmp_path / name / "seed-0", {1: 0.5}) for name in ("c", "d")]
    assert list(rows_of(tables_of(*by_folder)["scores"])) == ["c", "d"]


# --- formats


def test_every_format_says_the_same(tmp_path: Path) -> None:
    runs = [small_run(tmp_path / name, {1: score}, 0, name) for name, score in (("a_1", 0.5), ("b|2", 0.25))]
    tables = compare_runs(runs, Choices())
    shown = written(tables, "markdown")
    assert "b\\|2" in shown and "-0.2500" in shown and "## Costs to personal accuracy ≥ 0.47" in shown
    assert r"a\_1" in written(tables, "latex") and "$-$0.2500" in written(tables, "latex")
    scores = list(csv.DictReader(io.StringIO(as_csv(tables[0]))))
    assert (scores[1]["variant"], float(scores[1]["difference"]), scores[1]["p"]) == ("b|2", -0.25, "")
    files = {path.name for path in write_all(tables, tmp_path / "out")}
    assert files == {"compare.md", "compare.tex", "scores.csv", "target-0_47.csv", "costs.csv"}


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (1.4, "1.4x faster"),
        (0.5, "2x slower"),
        (1 / 1.25, "1.25x slower"),
        (1.002, "the same"),
        (12.34, "12.3x faster"),
    ],
)
def test_ratios_are_words(ratio: float, words: str) -> None:
    assert ratio_text(ratio, "faster", "slower") == words


def test_the_best_cells_are_bold_and_ties_too() -> None:
    columns = (
        Column("name", lambda row: row["name"]),
        Column("score", lambda row: f"{row['score']:.2f}", "score"),
        Column("cost", lambda row: f"{row['cost']}", "cost", bigger_is_better=False),
        Column("same", lambda row: "1", "same"),
    )
    values = (("a", 0.501, 3), ("b", 0.502, 2), ("c", math.nan, 9))
    rows = tuple({"name": name, "score": score, "cost": cost, "same": 1} for name, score, cost in values)
    text = markdown(Table("t", "t", columns, rows))
    assert "**0.50**" not in text, "equal as shown, so neither is the best"
    assert text.count("**2**") == 1 and "**3**" not in text and "**1**" not in text
    assert r"\textbf{2}" in latex(Table("t", "t", columns, rows))


def test_latex_names_its_package_and_has_a_short_caption(tmp_path: Path) -> None:
    text = latex(tables_of(small_run(tmp_path / "a", {1: 0.5}), targets=(0.4,))["target-0_4"])
    head, caption = text.split(r"\begin{table}")[0], next(line for line in text.splitlines() if "caption" in line)
    assert r"\usepackage{booktabs}" in head and "needs 1.4 times as long" in head
    assert caption == r"\caption{Costs to personal accuracy $\geq$ 0.4.}"


def test_latex_is_balanced_and_escaped() -> None:
    table = Table("t", "5 % & more", (Column("a_b", lambda row: row["x"]),), ({"x": "1 ± 2"}, {"x": "$#{}~^\\"}))
    text = latex(table)
    assert r"5 \% \& more" in text and r"a\_b" in text and r"1 $\pm$ 2" in text and r"\$\#\{\}" in text
    assert text.count(r"\begin{") == text.count(r"\end{") == 2
    assert markdown(table).startswith("## 5 % & more\n\n| a_b")
