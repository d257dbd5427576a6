"""analysis/figures/ranks.py on small made-up sweeps: ranks, tests and costs are worked out here by hand."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from round_logs import small_run

from fibec_ray.analysis.formats import markdown
from fibec_ray.analysis.settings import Choices, settings_of
from fibec_ray.errors import UserError

sys.path.insert(0, str(Path(__file__).parents[2] / "analysis" / "figures"))
from ranks import draw, main, ranking_of, table_of  # noqa: E402

LAST = Choices(pick="last")
SCORES = {"a": [0.9, 0.8], "b": [0.7, 0.8], "c": [0.1, 0.2]}
"""Of seeds 0 and 1."""


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """make("trec", scores): a sweep with one evaluation for each variant and seed; None: that run has not finished."""

    def made(task: str, scores: Mapping[str, list[float | None]] = SCORES) -> Path:
        out = tmp_path / "sweeps" / task
        for variant, by_seed in scores.items():
            for seed, score in enumerate(by_seed):
                if score is not None:
                    small_run(out / variant / f"seed-{seed}", {5: score}, seed, variant, task={"name": task})
        entries = [{"name": name, "group": "", "folder": name} for name in scores]
        record = {"name": task, "seeds": [0, 1], "reference": next(iter(scores)), "variants": entries}
        (out / "sweep.yaml").write_text(yaml.safe_dump(record))
        return out.parent

    return made


def ranked(folder: Path, blocks: Any = "seed", **choices: Any) -> Any:
    chosen = Choices(pick="last", **choices)
    return ranking_of(settings_of([folder], chosen), chosen, blocks)


def test_variants_are_ranked_within_each_task_and_seed_and_ties_share_a_rank(make: Any) -> None:
    make("trec")
    found = ranked(make("sst2", {"c": [0.3, 0.5], "a": [0.2, 0.1], "b": [0.9, 0.4]}))
    assert found.names == ("b", "a", "c") and found.num_left_out == 0
    assert found.ranks.tolist() == [[1, 3, 2], [2, 3, 1], [2, 1, 3], [1.5, 1.5, 3]]
    assert found.ranks.mean(0) == pytest.approx([1.625, 2.125, 2.25])
    assert found.costs["num_bytes"].tolist() == [[7e6] * 3] * 4 and found.costs["sim_time_s"][0, 0] == 70


def test_the_tests_are_those_of_the_literature(make: Any) -> None:
    """Friedman: 12 / (N k (k + 1)) sum of (rank sums)^2 - 3 N (k + 1) = 8 for four equal orders of three methods, and
    p = exp(-8 / 2). Critical difference: q = 2.343 for three methods (Demsar 2006, table 5), times sqrt(12 / 24)."""
    ordered = {"a": [0.9, 0.8], "b": [0.7, 0.5], "c": [0.1, 0.2]}
    make("trec", ordered)
    found = ranked(make("sst2", ordered))
    assert found.p_value == pytest.approx(np.exp(-4))
    assert found.critical_difference == pytest.approx(2.343 * np.sqrt(12 / 24), rel=1e-3)
    notes = " ".join(table_of(found, LAST, "seed").notes)
    assert "Friedman test: p = 0.0183: methods differ." in notes and "more than 1.66 apart (both at 5%)" in notes


def test_a_task_can_be_one_block(make: Any) -> None:
    make("trec")
    found = ranked(make("sst2"), "task")
    assert found.scores.tolist() == [pytest.approx([0.85, 0.75, 0.15])] * 2
    assert "one task, with the mean over its seeds" in table_of(found, LAST, "task").notes[0]


def test_only_complete_blocks_count(make: Any, tmp_path: Path) -> None:
    make("trec", {"a": [0.9, None], "b": [0.7, 0.8], "c": [0.1, 0.2]})
    found = ranked(make("sst2", SCORES | {"b": [0.7, float("nan")]}))
    assert len(found.scores) == 2 and found.num_left_out == 2
    assert (
        "2 blocks are left out, because variants have no score there: a (1), b (1)."
        in table_of(found, LAST, "seed").notes
    )
    with pytest.raises(UserError, match=r"0 complete blocks of 2: ranks need 2 or more; .* score: b \(1\), a \(1\)"):
        ranked(tmp_path / "sweeps", "task")


def test_too_few_variants_or_blocks_are_refused(make: Any) -> None:
    folder = make("trec", SCORES)
    with pytest.raises(UserError, match=r"2 variants \(a, b\): ranks need 3 or more"):
        ranked(folder, only=("b",))
    with pytest.raises(UserError, match="1 complete blocks of 1: .* without a score: none; run more tasks or seeds"):
        ranked(folder, "task")


def test_equal_scores_show_no_difference(make: Any) -> None:
    found = ranked(make("trec", dict.fromkeys("abc", [0.5, 0.5])))
    assert "Friedman test: all scores are equal." in " ".join(table_of(found, LAST, "seed").notes)
    assert draw(found).axes


def test_the_command_writes_a_diagram_and_a_table(make: Any, tmp_path: Path, capsys: Any) -> None:
    make("trec")
    out = tmp_path / "figures" / "ranks.svg"
    main([str(make("sst2")), "--out", str(out)])
    printed = capsys.readouterr().out
    assert "| a " in printed and "1.25" in printed and printed.endswith(f"{out}\n")
    assert out.read_text().startswith("<?xml") and out.with_suffix(".md").read_text() in printed
    assert out.with_suffix(".csv").read_text().splitlines()[1].startswith("a,1.25,0.85")
    with pytest.raises(SystemExit):
        main([str(tmp_path / "figures")])
    assert "error: " in capsys.readouterr().err


def test_the_table_has_scores_and_costs_of_each_variant(make: Any) -> None:
    make("trec")
    table = markdown(table_of(ranked(make("sst2")), LAST, "seed"))
    rows = [" ".join(line.split()) for line in table.splitlines() if line.startswith("| ")]
    assert rows[0] == "| variant | mean rank | mean score | MB sent | TFLOP | simulated s |"
    assert rows[2] == "| a | **1.25** | **0.8500** | 7 | 7 | 70 |"
