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
