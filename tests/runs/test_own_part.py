"""A user-defined part through the real command line: run, planned, killed, resumed, verified, replayed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import make_digits
from own_part import KIND, RULES, write_own_part
from runs.interrupted import interrupted, result

from fibec_ray.cli.main import main
from fibec_ray.config.load import check
from fibec_ray.parts import own
from fibec_ray.roundlog.reader import read_devices
from fibec_ray.runs.resume import resume
from fibec_ray.runs.simulation import simulate
from fibec_ray.runs.verify import verify
from fibec_ray.sweeps.load import load_sweep

CHANGED = RULES.replace("min(1.0,", "min(0.9,")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that `fibec-ray run own.yaml` made in a process of its own, whose YAML and file are gone since."""
    home = tmp_path_factory.mktemp("home")
    write_own_part(home, checkpoint={"every": 1, "keep": "all"})
    command = [sys.executable, "-m", "fibec_ray", "run", "own.yaml", "--out", "run"]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=120, env=os.environ)
    assert done.returncode == 0, done.stderr
    (home / "own.yaml").unlink()
    (home / "my_rules.py").unlink()
    return home / "run"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: no class of a file is known by its name."""
    monkeypatch.setattr(own, "_known", {})


def refusal(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert main(list(command)) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and len(printed.err.splitlines()) == 1
    return printed.err


def test_it_runs_and_the_run_keeps_its_file(finished: Path, tmp_path: Path) -> None:
    assert (finished / "parts" / "my_rules.py").read_text() == RULES
    assert yaml.safe_load((finished / "config.yaml").read_text())["method"]["aggregator"]["kind"] == KIND
    assert list(json.loads((finished / "checkpoints" / "run.json").read_text())["parts"]) == ["my_rules.py"]
    digest = json.loads((finished / "summary.json").read_text())["adapter_digest"]
    plain = simulate(check(make_digits(rounds=2), "test"), tmp_path / "plain")
    assert plain.adapter_digest != digest, "what clips nothing shows nothing"


def test_it_is_verified_and_replayed_from_the_run_alone(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(run), "--rounds", "2"]) == 0
    device = read_devices(run).to_pylist()[-1]["device"]
    assert main(["replay", str(run), "--round", "2", "--device", str(device)]) == 0
    assert capsys.readouterr().out.count("all equal, bit by bit") == 2


def test_its_settings_run_again_where_they_are_kept(run: Path, tmp_path: Path) -> None:
    assert main(["run", str(run / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    digests = [json.loads((each / "summary.json").read_text())["adapter_digest"] for each in (run, tmp_path / "again")]
    assert digests[0] == digests[1]


def test_it_is_planned_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = write_own_part(tmp_path / "home")
    assert main(["plan", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)
    assert main(["show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown)["method"]["aggregator"] == {"kind": KIND, "most": 0.5}
    assert f"# my_rules.py: {path.parent}/my_rules.py, digest " in shown


def test_it_is_killed_and_goes_on(tmp_path: Path) -> None:
    _, settings = write_own_part(tmp_path / "home", rounds=3)
    expected = result(simulate(check(settings, "test"), tmp_path / "calm"), tmp_path / "calm")
    folder = interrupted(settings, tmp_path / "run", 2 * settings["cohort_size"] + 1)
    shutil.rmtree(tmp_path / "home")
    own._known.clear()
    assert result(resume(folder), folder) == expected and verify(folder).differences == []


def test_the_methods_command_lists_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_own_part(tmp_path / "home")
    (tmp_path / "home" / "m.yaml").write_text(f"name: clipped\naggregator: {KIND}\n")
    offered = {"short": KIND, "mean": KIND, "gone": "no_such_package:X"}
    points = [EntryPoint(name, value, own.GROUP) for name, value in offered.items()]
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setattr(own, "_entry_points", lambda: points)
    monkeypatch.setenv("COLUMNS", "400")
    for files in (["m.yaml"], ["my_rules.py"], ["m.yaml", "my_rules.py"]):
        assert main(["methods", *files]) == 0
        printed = capsys.readouterr().out
        assert printed.count("The mean of updates that are scaled down") == 2 and "fibecfed" in printed
        assert printed.count(KIND) >= 2 and f"my_rules.py, digest {own.digest(RULES)}" in printed
        assert "a built-in kind has this name" in printed and "no module 'no_such_package'" in printed
    assert main(["methods", "none.py"]) == 2


# --- a changed file


def spoilt(folder: Path) -> None:
    (folder / "parts" / "my_rules.py").write_text(CHANGED + "\nraise AssertionError('it was run')\n")


COMMANDS: tuple[tuple[str, ...], ...] = (
    ("resume", "RUN"),
    ("verify", "RUN"),
    ("replay", "RUN", "--round", "1", "--device", "0"),
    ("run", "RUN.yaml", "--out", "RUN", "--resume"),
)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize("how", ["changed", "removed"])
def test_a_run_with_another_file_than_at_its_start_is_refused(
    run: Path, command: tuple[str, ...], how: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    write_own_part(tmp_path, checkpoint={"every": 1, "keep": "all"})[0].rename(tmp_path / "RUN.yaml")
    kept = run / "parts" / "my_rules.py"
    (run / "summary.json").unlink()
    spoilt(run) if how == "changed" else kept.unlink()
    places = {"RUN": str(run), "RUN.yaml": str(tmp_path / "RUN.yaml")}
    found = refusal(capsys, *(places.get(text, text) for text in command))
    assert str(kept) in found
    assert {"changed": "is not what the run began with; put it back", "removed": "put back what it keeps"}[how] in found


def test_run_resume_refuses_a_file_that_has_changed_beside_the_yaml(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = write_own_part(tmp_path / "home", CHANGED, checkpoint={"every": 1, "keep": "all"})
    found = refusal(capsys, "run", str(path), "--out", str(run), "--resume")
    assert f"{run}: my_rules.py is not what this run began with; put that back" in found
    assert f"({run}/parts/my_rules.py is a copy)" in found
    write_own_part(tmp_path / "home", RULES, checkpoint={"every": 1, "keep": "all"})
    assert main(["run", str(path), "--out", str(run), "--resume"]) == 0


def test_a_module_that_has_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "rules_of_an_own_package.py").write_text(RULES)
    monkeypatch.syspath_prepend(tmp_path / "home")
    settings = make_digits(rounds=1, method={"aggregator": "rules_of_an_own_package:ClippedMean"})
    simulate(check(settings, "test"), tmp_path / "run")
    assert not (tmp_path / "run" / "parts").exists() and verify(tmp_path / "run").differences == []
    del sys.modules["rules_of_an_own_package"]
    own._known.clear()
    (tmp_path / "home" / "rules_of_an_own_package.py").write_text(CHANGED)
    found = refusal(capsys, "verify", str(tmp_path / "run"))
    assert "rules_of_an_own_package is not what this run began with; put that back, or start a new run" in found


def test_two_files_of_one_name_in_one_run_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = write_own_part(tmp_path)
    (tmp_path / "other").mkdir()
    bent = "from fibec_ray.parts.objective.base import Objective\nclass Bent(Objective): pass\n"
    (tmp_path / "other" / "my_rules.py").write_text(bent)
    found = refusal(capsys, "plan", str(path), f"method.objective={tmp_path}/other/my_rules.py:Bent")
    assert "two different files are called my_rules.py; a run keeps files by name, so rename one" in found


def test_without_its_file_it_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = write_own_part(tmp_path)
    (tmp_path / "my_rules.py").rename(tmp_path / "my_rulez.py")
    for command in ("run", "plan", "show"):
        found = refusal(capsys, command, str(path))
        assert f"{path}: method.aggregator: {tmp_path}/my_rules.py: no such file; did you mean 'my_rulez.py'?" in found


# --- a sweep


def sweep_of(tmp_path: Path) -> Path:
    path, _ = write_own_part(tmp_path, rounds=1)
    content = {
        "config": "own.yaml", "seeds": [0], "reference": "clipped",
        "variants": {"clipped": [f"method.aggregator={KIND}"]},
    }  # fmt: skip
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "sweep.yaml"


def test_files_in_a_sweep_are_seen_from_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those on its command line are seen from the current folder."""
    path = sweep_of(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (run,) = load_sweep(path).runs
    assert run.experiment.method.aggregator.kind == KIND
    grid = load_sweep(tmp_path / "own.yaml", [f"method.aggregator=mean,../{KIND}"])
    assert [run.experiment.method.aggregator.kind for run in grid.runs] == ["mean", KIND]


@pytest.mark.slow
def test_a_sweep_runs_it_and_refuses_its_runs_once_it_has_changed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep, out = sweep_of(tmp_path), tmp_path / "out"
    assert main(["sweep", str(sweep), "--out", str(out)]) == 0
    assert (out / "clipped" / "seed-0" / "parts" / "my_rules.py").read_text() == RULES
    capsys.readouterr()
    (tmp_path / "my_rules.py").write_text(CHANGED)
    own._known.clear()
    found = refusal(capsys, "sweep", str(sweep), "--out", str(out))
    assert "holds a finished run of another experiment (my_rules.py has changed since the run began)" in found
    assert "remove this folder to have it run again" in found


# --- what only reads a run never runs what it keeps


READERS: tuple[Callable[[Path], list[str]], ...] = (
    lambda run: ["report", str(run)],
    lambda run: ["compare", str(run), str(run)],
    lambda run: ["export", str(run), "--to", "tensorboard"],
    lambda run: ["watch", str(run)],
    lambda run: ["runs", str(run.parent)],
)


@pytest.mark.parametrize("reader", READERS, ids=["report", "compare", "export", "watch", "runs"])
def test_reading_a_run_runs_nothing_of_it(reader: Callable[[Path], Any], run: Path, tmp_path: Path) -> None:
    trap = f"open({str(tmp_path / 'sprung')!r}, 'w').close()\n"
    (run / "parts" / "my_rules.py").write_text(trap)
    main(reader(run))
    assert not (tmp_path / "sprung").exists()
