"""From an empty folder to a run: `fibec-ray init`, what it writes, and shell completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fibec_ray.cli.main import main
from fibec_ray.cli.template import FILES
from fibec_ray.config.experiment import Experiment

SMALL = [
    "backbone=tiny-llama",
    "rounds=1",
    "num_devices=2",
    "cohort_size=1",
    "data.synthetic={num_train: 16, num_test: 8}",
]


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Path:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "demo"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("next: cd demo && fibec-ray run\n")
    monkeypatch.chdir(tmp_path / "demo")
    return tmp_path / "demo"


def test_init_writes_what_it_says(demo: Path) -> None:
    assert sorted(str(path.relative_to(demo)) for path in demo.rglob("*.*")) == sorted(FILES)
    assert len((demo / "README.md").read_text().splitlines()) <= 10
    written = yaml.safe_load((demo / "experiment.yaml").read_text())
    assert written.keys() <= Experiment.model_fields.keys()


def test_the_folder_runs_at_once_with_a_method_and_a_part_of_ones_own(demo: Path, capsys: Any) -> None:
    assert main(["run", *SMALL]) == 0
    assert f"run directory: {demo / 'runs' / 'first'}" in capsys.readouterr().out
    assert main(["run", "method=mine", "--method.objective.strength=0.5", *SMALL]) == 0
    config = yaml.safe_load((demo / "runs" / "first-2" / "config.yaml").read_text())
    assert config["method"]["name"] == "mine" and config["method"]["objective"]["strength"] == 0.5
    assert (demo / "runs" / "first-2" / "parts" / "my_part.py").is_file()
    assert main(["methods"]) == 0
    assert "  mine " in capsys.readouterr().out


@pytest.mark.slow
def test_the_folder_runs_under_a_minute_on_two_cores(demo: Path) -> None:
    command = [sys.executable, "-m", "fibec_ray", "run"]
    subprocess.run(command, cwd=demo, check=True, timeout=60, capture_output=True)


def test_init_takes_an_empty_folder_and_hidden_files(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    assert capsys.readouterr().out.endswith("next: fibec-ray run\n")
    assert (tmp_path / "methods" / "mine.yaml").is_file()


def test_init_refuses_a_folder_with_files(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["init", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err == f"fibec-ray: {tmp_path}: has files already (notes.txt); name a new folder\n"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert main(["init", str(tmp_path / "notes.txt")]) == 2
    assert "cannot be read (Not a directory)" in capsys.readouterr().err
    assert main(["init", str(tmp_path / "notes.txt" / "below")]) == 2


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_completion_is_a_script_of_that_shell(shell: str, capsys: Any) -> None:
    assert main(["completion", shell]) == 0
    assert "fibec-ray" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("fibec-ray comp", {"compare", "completion"}),
        ("fibec-ray run tre", {"trec"}),
        ("fibec-ray sweep fipa-d", {"fipa-digits"}),
        ("fibec-ray run trec method=fedav", {"method=fedavg", "method=fedavg-ft", "method=fedavgm"}),
        ("fibec-ray run trec loc", {"local=", "local_epochs="}),
        ("fibec-ray run trec --re", {"--resume"}),
        ("fibec-ray show experiment.y", {"experiment.yaml"}),
    ],
)
def test_tab_completes(line: str, found: set[str], demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "completions"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    env = os.environ | asked | {"_ARGCOMPLETE_STDOUT_FILENAME": str(out)}
    subprocess.run([sys.executable, "-m", "fibec_ray"], cwd=demo, env=env, check=True, timeout=60)
    answers = {text.strip() for text in out.read_text().split("\013")}
    assert found <= answers
    last = line.rpartition(" ")[2]
    assert all(answer.startswith(last) for answer in answers)
