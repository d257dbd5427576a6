"""`fibec-ray watch`: a run that is being written, in a pipe and in a terminal."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from conftest import make_digits
from rich.console import Console

from fibec_ray.cli.watch import lines, looks, view
from fibec_ray.config.load import check
from fibec_ray.errors import RunDirError
from fibec_ray.runs.simulation import simulate


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    simulate(check(make_digits(name="seen", rounds=3), "test"), folder)
    return folder


def test_a_line_for_each_round_and_one_for_the_end(run_dir: Path) -> None:
    found = list(lines(run_dir, every_s=0))
    assert [line.split(":")[0] for line in found[:-1]] == ["round 0", "round 1", "round 2", "round 3"]
    assert "global 0." in found[2] and "train loss 2." in found[1]
    assert found[-1] == f"{run_dir}: finished"


def test_it_goes_on_until_the_run_has_ended(tmp_path: Path) -> None:
    settings = make_digits(rounds=30)
    thread = threading.Thread(target=simulate, args=(check(settings, "test"), tmp_path / "run"))
    thread.start()
    while not (tmp_path / "run" / "summary.json").exists():
        assert thread.is_alive()
    found = list(lines(tmp_path / "run", every_s=0.02))
    thread.join()
    assert len(found) == 32 and found[-1].endswith(": finished")


def test_the_view_has_a_bar_and_the_newest_rounds(run_dir: Path) -> None:
    ((summary, rows),) = looks(run_dir, every_s=0)
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(view(summary | {"status": "running", "rounds": 10}, rows, console.width))
    text = console.export_text()
    assert "seen: fedavg on digits, seed 3, running" in text
    assert "3/10 rounds, about" in text and "train loss" in text and "start" not in text


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunDirError, match="not a run directory, or its run has not started"):
        list(lines(tmp_path, every_s=0))
    (tmp_path / "summary.json").write_text(json.dumps({"status": "running"}))
    with pytest.raises(RunDirError, match="not a run directory, or its run has not started"):
        list(lines(tmp_path, every_s=0))
