"""`fibec-ray configs`, `methods`, `tasks` and `backbones`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fibec_ray.cli.catalogue import OWN, entries
from fibec_ray.cli.main import main
from fibec_ray.config.names import packaged
from fibec_ray.method import AXES

GROUPS = ("configs", "methods", "tasks", "backbones")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


@pytest.mark.parametrize("group", GROUPS)
def test_every_packaged_file_has_one_line(group: str) -> None:
    found = entries(group)
    files = packaged(group) if group != "configs" else packaged("experiments") | packaged("sweeps")
    assert sorted(entry.name for entry in found) == sorted(files)
    for entry in found:
        assert entry.family != "Others" and 0 < len(entry.summary) <= 53, entry


@pytest.mark.parametrize("group", GROUPS)
def test_a_list_is_short(group: str, capsys: Any) -> None:
    assert main([group]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 90 and max(map(len, lines[:-1])) <= 80


def test_methods_say_when_to_use_them_and_what_they_cost() -> None:
    bare = [entry for entry in entries("methods") if not (entry.use and entry.cost)]
    assert all(entry.fold for entry in bare), bare


def test_the_short_list_of_methods_names_families_of_variants(capsys: Any) -> None:
    """Each label is there, with as many names as two lines hold; --all has a line for each method."""
    assert main(["methods"]) == 0
    short = capsys.readouterr().out
    assert main(["methods", "--all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    folded = [entry for entry in entries("methods") if entry.fold]
    assert len(folded) > 15 and all(f"  {entry.fold}: " in short for entry in folded)
    for entry in entries("methods"):
        assert any(line.split() == [entry.name, *entry.summary.split()] for line in lines)


@pytest.mark.parametrize("option", ["--wide", "--json"])
def test_an_option_without_effect_is_rejected(option: str, capsys: Any) -> None:
    assert main(["methods", "--all", option]) == 2
    assert "--all has no effect" in capsys.readouterr().err


def test_own_files_are_listed_last(elsewhere: Path, capsys: Any) -> None:
    (elsewhere / "methods").mkdir()
    (elsewhere / "methods" / "mine.yaml").write_text("name: mine\n")
    assert main(["methods"]) == 0
    out = capsys.readouterr().out
    assert out.index(OWN) > out.index("zero-shot") and "  mine " in out and "methods/mine.yaml" in out


@pytest.mark.parametrize("group", ["configs", "tasks", "backbones"])
def test_json_holds_the_settings_of_each_file(group: str, capsys: Any) -> None:
    assert main([group, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) > 3 and all(entry["settings"] and entry["summary"] for entry in found)


def test_json_of_methods_names_the_part_of_each_axis(capsys: Any) -> None:
    assert main(["methods", "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert found.keys() == packaged("methods").keys()
    assert found["krum"]["parts"].keys() == AXES.keys() and found["krum"]["parts"]["aggregator"] == "krum"


def test_a_broken_file_of_ones_own_is_named_and_hides_nothing(elsewhere: Path, capsys: Any) -> None:
    (elsewhere / "tasks").mkdir()
    (elsewhere / "tasks" / "mine.yaml").write_text("[")
    assert main(["tasks", "--json"]) == 0
    *others, mine = json.loads(capsys.readouterr().out)
    assert len(others) == len(packaged("tasks")) and "not YAML" in mine["error"]


@pytest.mark.parametrize("group", ["tasks", "methods"])
def test_wide_is_a_table(group: str, capsys: Any) -> None:
    assert main([group, "--wide"]) == 0
    rows = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert sorted(rows) == sorted(packaged(group))
