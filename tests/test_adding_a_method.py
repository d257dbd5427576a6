"""docs/adding-a-method.md, step by step: its files are written into an empty folder, and its commands run there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from fibec_ray.cli.main import main
from fibec_ray.roundlog.reader import read_rounds
from fibec_ray.testing.__main__ import main as check_parts

PAGE = (Path(__file__).parents[1] / "docs" / "adding-a-method.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.M | re.S)


def commands(program: str) -> list[list[str]]:
    """The arguments of each command of the page."""
    lines = (line for block in blocks("sh") for line in block.splitlines())
    return [shlex.split(line.removeprefix(program)) for line in lines if line.startswith(program)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With the files that stand under a line with their name."""
    for name, content in re.findall(r"^`([\w.]+)`\n\n```\w+\n(.*?)^```$", PAGE, re.M | re.S):
        (tmp_path / name).write_text(content, encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my_rules.py", "sparse.yaml"]
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_part_is_ten_lines() -> None:
    (code,) = blocks("python")
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 10


def test_the_checks_print_what_the_page_shows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but the one on Ray, which tests/fleets has."""
    (arguments,) = commands("python -m fibec_ray.testing")
    (printed,) = blocks("text")
    assert check_parts([*arguments, "--no-ray"]) == 0
    assert capsys.readouterr().out.splitlines() == [line for line in printed.splitlines() if "  ray  " not in line]


@pytest.mark.parametrize("sweeps", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_commands_run(sweeps: bool, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those of a cluster aside, which tests/jobs has. The sweep starts a process for each run, which is slow."""
    for arguments in commands("fibec-ray "):
        if "--address" not in arguments and (sweeps or arguments[0] != "sweep"):
            assert main(arguments) == 0, arguments
    assert {path.name for path in (folder / "runs").iterdir()} >= {"sparse", "strong", *(["sweep"] if sweeps else [])}
    digests = {name: read_rounds(folder / "runs" / name)["adapter_digest"][-1].as_py() for name in ("sparse", "strong")}
    assert digests["sparse"] != digests["strong"], "the penalty has no effect"
    assert "fedsparse" in capsys.readouterr().out


def test_a_misspelt_setting_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "sparse.yaml", "method.objective.strenght=1"]) == 2
    assert "method.objective.strenght: no such key; did you mean 'strength'" in capsys.readouterr().err
