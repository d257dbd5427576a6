"""`fibec-ray predict` and `fibec-ray export`, from a run on disk."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_digits, make_tiny

from fibec_ray.cli.main import main
from fibec_ray.config.load import check
from fibec_ray.export.load import load
from fibec_ray.runs.simulation import simulate

TEXTS = ["the red bird sings", "pay the bill, please"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = make_tiny(rounds=1, num_devices=3, cohort_size=3, backbone={"head": "model"})
    return simulate(check(raw, "test"), tmp_path_factory.mktemp("runs") / "run").folder


def said(capsys: Any, *words: Any) -> tuple[int, str]:
    code = main([str(word) for word in words])
    found = capsys.readouterr()
    return code, found.out + found.err


def test_texts_on_the_command_line(run: Path, capsys: Any) -> None:
    expected = load(run).predict(TEXTS)
    code, shown = said(capsys, "predict", run, "--text", TEXTS[0], "--text", TEXTS[1])
    assert code == 0
    assert shown.splitlines() == [f"{p.label}  {p.score:.3f}  {t}" for p, t in zip(expected, TEXTS, strict=True)]
    code, shown = said(capsys, "predict", run, "--text", TEXTS[0], "--json")
    assert code == 0 and json.loads(shown)[0]["scores"] == pytest.approx(
        dict(load(run).predict(TEXTS[:1])[0].scores), abs=1e-6
    )


def test_a_table_in_and_a_table_out(run: Path, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "mine.csv").write_text('id,body\n1,the red bird sings\n2,"pay the bill, please"\n')
    code, shown = said(capsys, "predict", run, "--file", tmp_path / "mine.csv", "--out", tmp_path / "out.csv")
    assert code == 2 and "has the columns id, body; name the column with the text: --columns NAME" in shown
    options = ("--file", tmp_path / "mine.csv", "--columns", "body")
    code, shown = said(capsys, "predict", run, *options, "--out", tmp_path / "out.csv")
    assert (code, shown) == (0, f"{tmp_path / 'out.csv'}: 2 predictions\n")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["body"] for row in rows] == TEXTS
    assert [row["label"] for row in rows] == [p.label for p in load(run).predict(TEXTS)]
    assert said(capsys, "predict", run, *options, "--out", tmp_path / "out.jsonl")[0] == 0
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert lines[1]["body"] == TEXTS[1] and len(lines[1]["scores"]) == 6


def test_a_devices_model(run: Path, capsys: Any) -> None:
    assert said(capsys, "predict", run, "--device", 2, "--text", TEXTS[0])[0] == 0
    code, shown = said(capsys, "predict", run, "--device", 3, "--text", TEXTS[0])
    assert (code, shown) == (2, "fibec-ray: device 3: the run has devices 0 to 2\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "predict: give inputs with --text TEXT (may be repeated) or with --file FILE"),
        (("--text", "a", "--file", "b.csv"), "one of the two"),
        (("--text", "a", "--text-pair", "b"), "input 0: task synthetic takes a text for each sample"),
        (("--text", "a", "--text-pair", "b", "--text-pair", "c"), "--text-pair: 2 given for 1 --text"),
        (("--file", "none.csv"), "--file none.csv: no such file"),
        (("--file", "none.pdf"), "--file none.pdf: its name must end in one of .parquet"),
        (("--text", "a", "--out", "a.xlsx"), "--out a.xlsx: its name must end in .csv or .jsonl"),
        (("--text", "a", "--on", "gpu"), "--on gpu: torch cannot use this device"),
        (("--text", "a", "--on", "cuda:99"), "--on cuda:99: torch cannot use this device"),
        (("--text", "a", "--base", "b"), "--base b: has no effect, because the backbone has random weights"),
    ],
)
def test_bad_input_is_one_line(words: tuple[str, ...], says: str, run: Path, capsys: Any) -> None:
    code, shown = said(capsys, "predict", run, *words)
    assert code == 2 and says in shown and len(shown.splitlines()) == 1


def test_exports(run: Path, tmp_path: Path, capsys: Any) -> None:
    before = load(run).scores(TEXTS)
    assert said(capsys, "export", run, tmp_path / "adapter")[0] == 0
    assert torch.equal(load(tmp_path / "adapter").scores(TEXTS), before)
    code, shown = said(capsys, "export", run, "--merged", tmp_path / "plain")
    assert code == 0 and shown == f"{tmp_path / 'plain'}: a plain transformers model\n"
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "plain")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "plain").eval()
    with torch.no_grad():
        logits = plain(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(logits, before, rtol=0, atol=1e-5)
    assert said(capsys, "export", run, tmp_path / "own", "--device", 1)[0] == 0
    own, there = load(run, device=1).scores(TEXTS), load(tmp_path / "own")
    torch.testing.assert_close(there.scores(TEXTS), own)
    assert there.about.device == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "export: give one of DIR (the adapter), --merged DIR"),
        (("a", "--merged", "b"), "export: give one of"),
        (("a", "--dest", "b"), "--dest: has no effect without --to"),
        (("--to", "tensorboard", "--device", "1"), "--device: has no effect with --to"),
    ],
)
def test_an_export_is_one_thing(words: tuple[str, ...], says: str, run: Path, capsys: Any) -> None:
    code, shown = said(capsys, "export", run, *words)
    assert code == 2 and says in shown


def test_a_network_on_numbers_says_how(tmp_path: Path, capsys: Any) -> None:
    run = simulate(check(make_digits(rounds=1), "test"), tmp_path / "run").folder
    for words in (("--text", "a"), ("--file", "a.csv")):
        code, shown = said(capsys, "predict", run, *words)
        assert code == 2 and "use fibec_ray.load(RUN).predict(ARRAY) in Python" in shown
    code, shown = said(capsys, "export", run, "--merged", tmp_path / "plain")
    assert code == 2 and "a network from scratch and has no adapter to merge" in shown
