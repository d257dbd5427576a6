"""`fibec-ray run --data FILE` as a new user would type it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import TINY_BERT

from fibec_ray.cli.main import _parse, main
from fibec_ray.roundlog.reader import read_devices, read_rounds
from fibec_ray.sweeps.load import load_sweep

TINY = [
    f"backbone={json.dumps({'init': 'random', 'config': TINY_BERT, 'tokenizer': 'minilm'})}",
    "method=fedavg", "rounds=2", "evaluation.every=1", "data.max_length=16", "fleet.kind=local", "local.batch_size=4",
]  # fmt: skip


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file as Excel writes it in Europe: semicolons, cp1252, a column of users."""
    monkeypatch.chdir(tmp_path)
    rows = [f"{i};{'schöner' if i % 2 else 'langweiliger'} Film Nr. {i};{i % 2 * 4 + 1};u{i % 5}" for i in range(60)]
    (tmp_path / "Filme.csv").write_bytes("\r\n".join(["Nr;Text;Rating;user", *rows, ""]).encode("cp1252"))
    return "Filme.csv"


def test_a_run_on_own_data_is_said_kept_resumed_and_verified(reviews: str, capsys: Any) -> None:
    assert main(["run", "--data", reviews, *TINY]) == 0
    out = capsys.readouterr().out
    assert "text from 'Text', 2 classes from 'Rating' (1, 5); 48 training rows and 12 test rows: no test file" in out
    assert "Filme.csv is not UTF-8 and was read as cp1252 (data.encoding)" in out
    run = Path("runs/Filme")
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["task"]["label_names"] == ["1", "5"] and saved["task"]["name"] == "Filme"
    Path(reviews).unlink()  # the run has its own copy
    assert main(["verify", str(run)]) == 0
    assert main(["resume", str(run)]) == 0
    assert "all equal, bit by bit" in capsys.readouterr().out


def test_each_user_is_a_device_with_test_rows(reviews: str, capsys: Any) -> None:
    assert main(["run", "--data", reviews, *TINY, "partition.column=user", "--out", "runs/users"]) == 0
    out = capsys.readouterr().out
    assert "5 devices of 9 to 10 samples, 5 a round" in out and "the same share of each user's rows" in out
    log = read_devices(Path("runs/users")).to_pylist()
    assert {row["device"] for row in log} == set(range(5))
    assert read_rounds(Path("runs/users")).to_pylist()[-1]["personal_accuracy"] is not None


def test_data_go_with_every_command_that_takes_an_experiment(reviews: str, capsys: Any) -> None:
    assert main(["show", "--data", reviews, *TINY]) == 0
    first = yaml.safe_load(capsys.readouterr().out)
    assert main(["show", *TINY, "--data", reviews]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == first
    Path("experiment.yaml").write_text(yaml.safe_dump({"rounds": 7, "num_devices": 3, "cohort_size": 2}))
    assert main(["show", "--data", reviews]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["num_devices"] == 3
    assert main(["show", "quickstart", "--data", reviews]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["task"]["label_names"] == ["1", "5"]


def test_the_packaged_config_is_found_by_name(reviews: str, capsys: Any) -> None:
    assert main(["show", "own-data", f"data.path={reviews}"]) == 0
    by_name = capsys.readouterr().out
    assert main(["show", "--data", reviews]) == 0
    assert capsys.readouterr().out == by_name


def test_a_sweep_compares_methods_on_own_data(reviews: str) -> None:
    sweep = _parse(["sweep", "--data", reviews, "method=fedavg,fibecfed", "seed=0,1", "--out", "x"])
    runs = load_sweep(sweep.config, sweep.overrides).runs
    assert [run.label for run in runs] == [f"{name}, seed {s}" for s in (0, 1) for name in ("fedavg", "fibecfed")]
    assert {run.experiment.task.label_names for run in runs} == {("1", "5")}


def test_rows_without_a_label_are_left_out_and_counted(reviews: str, capsys: Any) -> None:
    text = Path(reviews).read_bytes().replace(b";5;u1\r", b"; ;u1\r")
    Path(reviews).write_bytes(text)
    assert main(["show", "--data", reviews]) == 2
    assert (
        "column 'Rating': no label in row 1 and 5 more; fill it in, set data.drop_missing=true"
        in capsys.readouterr().err
    )
    assert main(["run", "--data", reviews, *TINY, "data.drop_missing=true", "rounds=1"]) == 0
    assert "6 rows without a text or a label left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--data", "Filme.cvs"], "data.path: Filme.cvs: no such file or folder; did you mean Filme.csv?"),
        (["--data", "Filme.csv", "data.label=rating"], "no column 'rating'; did you mean 'Rating'?"),
        (
            ["--data", "Filme.csv", "num_devices=50", "data.test_fraction=0.5"],
            "50 devices, but only 30 training samples",
        ),
        (["--data", "Filme.csv", "partition.column=user", "num_devices=9"], "column 'user' has 5 different values"),
        (["--data", "Filme.csv", "data.encoding=utf-8"], "cannot be read as csv"),
        (
            ["s3://bucket/experiment.yaml"],
            "s3://bucket/experiment.yaml: a path on this machine is needed here, and this is a URL",
        ),
        (["--data", "s3://key:secret@bucket/x.csv"], "--data"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(arguments: list[str], says: str, reviews: str, capsys: Any) -> None:
    assert main(["run", *arguments, *TINY]) == 2
    out, err = capsys.readouterr()
    assert says in err and len(err.splitlines()) == 1 and out == "" and "secret" not in err
    assert not list(Path("runs").glob("*"))
