"""What reaches the terminal: user text as it is, in tables whose numbers are whole at any width."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import make_digits
from rich.table import Table

import fibec_ray
from fibec_ray.cli.console import RunView
from fibec_ray.cli.job_table import job_table
from fibec_ray.cli.main import main
from fibec_ray.cli.method_table import method_table
from fibec_ray.cli.terminal import make_console, print_table
from fibec_ray.config.load import check
from fibec_ray.jobs.client import Job
from fibec_ray.method import Method
from fibec_ray.runs.simulation import simulate

PACKAGE = Path(fibec_ray.__file__).parent
TEXTS = ["[lora]", "a[/]", "[/x]", "r[red]x", ":smile:", "[link=http://x]y[/link]", r"\[bold]", "1.5 'q' http://h/p"]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_not_markup(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    console, table = make_console(), Table(title=text, caption=text)
    table.add_column(text)
    table.add_row(text)
    console.print(text)
    print_table(console, table)
    assert capsys.readouterr().out.count(text) == 5


def test_text_in_a_table_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(title="\x1b[2J")
    table.add_column("\x1b[31m")
    table.add_row("\x1b]0;t\x07")
    print_table(make_console(), table)
    out = capsys.readouterr().out
    assert "\x1b" not in out and r"\x1b[2J" in out and r"\x1b]0;t\x07" in out


def test_jobs_of_others_are_listed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    job_table([Job("a[/]", "\x1b[31mRUNNING", "", 0, None, {"fibec_out": "/srv/[red]x\n:smile:"})])
    out = capsys.readouterr().out
    assert "a[/]" in out and r"\x1b[31mrunning" in out and "/srv/[red]x" in out and ":smile:" in out


def test_one_place_makes_consoles_and_no_column_reads_markup() -> None:
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                options = {option.arg: ast.unparse(option.value) for option in node.keywords}
                assert node.func.id != "Console", f"{path}: use make_console"
                assert node.func.id != "TextColumn" or options.get("markup") == "False", path


def numbers_in(text: str) -> set[str]:
    return set(re.findall(r"\d\.\d{3}\b", text))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    experiment = check(make_digits(name="trec [lora] r8 [red]", rounds=2), "test")
    return experiment, simulate(experiment, tmp_path_factory.mktemp("runs") / "r[red]x [/]")


@pytest.mark.parametrize("width", ["200", "80", "40", "20"])
def test_a_summary_keeps_its_numbers_and_names(width: str, run: Any, monkeypatch: Any, capsys: Any) -> None:
    experiment, done = run
    with RunView(experiment) as view:
        view.summary(done)
    wide = capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", width)
    with RunView(experiment) as view:
        view.on_data(done.prepared)
        view.on_message("device [/17] is lost")
        view.summary(done)
    out = capsys.readouterr().out
    assert numbers_in(out) == numbers_in(wide) and len(numbers_in(wide)) > 3
    assert "…" not in out and "device [/17] is lost" in out
    assert "trec [lora] r8 [red]: fedavg on digits" in out and f"run directory: {done.folder}\n" in out


@pytest.mark.parametrize("width", [60, 40, 24])
def test_a_table_too_wide_becomes_a_list(width: int, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    table = Table(title="scores")
    table.add_column("variant", overflow="fold")
    for column in ("accuracy", "loss", "perplexity"):
        table.add_column(column, no_wrap=True)
    table.add_row("a variant of a long name", "0.812", "1234567.891", "")
    print_table(make_console(), table)
    out = capsys.readouterr().out
    assert "0.812" in out and "1234567.891" in out and max(map(len, out.splitlines())) <= width
    assert ("accuracy: 0.812" in out) == (width < 60)


def test_methods_at_40_columns(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """In a pipe they have one line each, whatever COLUMNS says."""
    monkeypatch.setenv("COLUMNS", "40")
    method_table([("fedavg", Method())])
    assert len(capsys.readouterr().out.splitlines()) == 5


def test_a_plan_at_40_columns(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    import yaml

    monkeypatch.setenv("COLUMNS", "40")
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump(make_digits(name="[lora]")))
    assert main(["plan", str(tmp_path / "exp.yaml"), "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 40 and "…" not in out and "[lora], fedavg" in out
    assert re.search(r"\d\.\d MB", out) and re.search(r"\de[+]\d\d", out)
