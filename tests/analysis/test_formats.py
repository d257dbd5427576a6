"""Cells of tables in the hands of spreadsheets and terminals."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from round_logs import small_run

from fibec_ray.analysis.formats import Column, Table, as_csv, escaped, fitted, markdown, spreadsheet_cell
from fibec_ray.cli.main import main


@pytest.mark.parametrize(
    "text", ["=cmd|'/C calc'!A0", "+1+1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "-", "--x", "-1-1", "＝1", "+"]
)
def test_a_text_that_a_spreadsheet_would_run(text: str) -> None:
    assert spreadsheet_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [-1, -0.5, -1e-9, None, "", "-1", "-0.25", "+3", "-1e-05", "fedavg", "a=b", "r=8", 0])
def test_numbers_and_plain_texts_stay(value: Any) -> None:
    assert spreadsheet_cell(value) == value


def test_every_csv_that_we_write_is_safe_to_open(tmp_path: Path) -> None:
    name = "=HYPERLINK(1)"
    sweep, scores = tmp_path / "sweep", {name: 0.8, "-1": 0.4, "worse": 0.3}
    for at, score in enumerate(scores.values()):
        for seed in (0, 1):
            small_run(sweep / f"v{at}" / f"seed-{seed}", {0: score, 1: score + 0.1 * seed}, seed, rounds=range(-1, 2))
    variants = [{"name": name, "group": "@group", "folder": f"v{at}"} for at, name in enumerate(scores)]
    (sweep / "sweep.yaml").write_text(
        yaml.safe_dump({"name": "s", "seeds": [0, 1], "reference": name, "variants": variants})
    )
    assert main(["sweep-table", str(sweep)]) == 0
    assert main(["compare", str(sweep), "--anyway", "--out", str(tmp_path / "tables")]) == 0
    paths = [sweep / "table.csv", *(tmp_path / "tables").glob("*.csv")]
    assert len(paths) > 3
    for path in paths:
        rows = list(csv.reader(path.open(newline="")))
        cells = [cell for row in rows for cell in row]
        assert f"'{name}" in cells and name not in cells and "@group" not in cells and "-1" in cells
    differences = [row["difference"] for row in csv.DictReader((sweep / "table.csv").open(newline=""))]
    assert float(differences[1]) < 0, "a negative number stays one"


def test_foreign_summaries_cannot_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In any text of a summary, a config or a sweep's record."""
    evil = "\x1b]0;owned\x07\x9b2J\r|\nrow"
    for seed in (0, 1):
        run = small_run(tmp_path / "runs" / str(seed), {0: 0.5, 2: 0.75}, seed, rounds=range(-1, 3), name=evil)
        facts = {"method": evil, "task": evil, "metric": "accuracy", "seed": seed, "rounds": 3, "name": evil}
        (run / "summary.json").write_text(json.dumps(facts | {"status": "finished", "anchors": {evil: 0.1}}))
    one, two = (str(tmp_path / "runs" / str(seed)) for seed in (0, 1))
    ended = small_run(tmp_path / "ended", {0: 0.5}, rounds=range(-1, 1), status=evil)
    (tmp_path / "exp.yaml").write_text(yaml.safe_dump({"name": evil}))
    show, others = ["show", str(tmp_path / "exp.yaml")], (["runs", str(tmp_path)], ["watch", str(ended)])
    for command in (show, *others, ["compare", one, two], ["compare", one, str(ended)]):
        main(command)
        out, err = capsys.readouterr()
        assert not set("\x1b\x07\x9b\r") & set(out + err)
        assert "x1b" in out + err
    assert main(["runs", str(tmp_path)]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 5, "a line end in a name makes no row of its own"


def a_table() -> Table:
    columns = (
        Column("variant", lambda row: row["v"]),
        *(Column(f"score {i}", lambda row: "0.8123 ± 0.0456") for i in range(4)),
    )
    return Table(
        "t", "Scores", columns, ({"v": "fibecfed"}, {"v": "fedavg"}), ("A note of more than forty characters.",)
    )


@pytest.mark.parametrize("width", [40, 60, 100, None])
def test_a_table_in_a_narrow_terminal_keeps_its_numbers(width: int | None) -> None:
    text = markdown(a_table(), width)
    assert text.count("0.8123 ± 0.0456") == 8 and text.startswith("## Scores\n\n")
    assert ("  score 0: 0.8123 ± 0.0456" in text) == (width in (40, 60))
    assert width is None or max(map(len, text.splitlines())) <= width


def test_tables_in_files_and_pipes_do_not_depend_on_a_width() -> None:
    assert max(map(len, markdown(a_table()).splitlines())) > 80
    assert fitted([["a", "b"], ["1", "2"]], None) == fitted([["a", "b"], ["1", "2"]], 80)
    assert as_csv(a_table()) == "v\nfibecfed\nfedavg\n"


def test_bars_and_line_ends_stay_inside_a_cell() -> None:
    assert escaped("a|b\nc\r\nd") == "a\\|b c d"
