"""`fibec-ray runs`: what it says of finished, failed, growing and broken runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from round_logs import small_run

from fibec_ray.analysis.listing import listing
from fibec_ray.errors import RunDirError
from fibec_ray.roundlog.writer import RoundLog


def lines_of(folder: Path) -> dict[str, list[str]]:
    rows = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in listing(folder).splitlines()]
    return {row[0]: row[1:] for row in rows[2:]}


def test_runs_are_listed_with_status_progress_and_best_score(tmp_path: Path) -> None:
    small_run(tmp_path / "a", {0: 0.5, 2: 0.75, 4: 0.625})
    small_run(tmp_path / "sweep" / "b" / "seed-3", {1: 0.25}, 3, "fedavg", range(-1, 3), "failed", "global")
    small_run(tmp_path / "c", {}, rounds=range(-1, 1), status="running")
    lines = lines_of(tmp_path)
    assert list(lines) == ["a", "c", "sweep/b/seed-3"]
    assert lines["a"][:7] == ["finished", "fibecfed", "trec", "0", "6/6", "0.7500", "personal"]
    assert lines["sweep/b/seed-3"][:7] == ["failed", "fedavg", "trec", "3", "3/6", "0.2500", "global"]
    assert lines["c"][:7] == ["running or stopped", "fibecfed", "trec", "0", "1/6", "–", "–"]
    assert lines["a"][7].endswith(" s ago")


def test_a_broken_run_does_not_hide_the_others(tmp_path: Path) -> None:
    small_run(tmp_path / "a", {0: 0.5})
    (small_run(tmp_path / "b", {}) / "summary.json").write_text("{")
    for part in (small_run(tmp_path / "c", {}) / "rounds").iterdir():
        part.write_bytes(b"PAR1")
    RoundLog(tmp_path / "d", dict.fromkeys(("run_id", "seed", "git_commit", "config"), ""))
    statuses = {name: cells[0] for name, cells in lines_of(tmp_path).items()}
    assert statuses == {"a": "finished", "b": "unreadable", "c": "unreadable", "d": "no rounds yet"}


def test_a_run_is_listed_by_itself_and_by_its_metric(tmp_path: Path) -> None:
    run = small_run(tmp_path / "a", {0: 0.5})
    (run / "summary.json").write_text(json.dumps({"status": "finished", "metric": "r2", "rounds": 6}))
    assert lines_of(run)["a"][5:7] == ["–", "–"]  # an accuracy is not what a regression is judged by


def test_a_folder_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="no run below this folder"):
        listing(tmp_path)
