"""The `fibec-ray` command as a person meets it: what it prints, how it exits, and that bad input costs one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import make_regression

from fibec_ray.cli.main import build_parser, main
from fibec_ray.config.load import load_experiment
from fibec_ray.config.names import config_folder
from fibec_ray.runs.simulation import resolved

QUICKSTART = str(config_folder() / "quickstart.yaml")


@pytest.fixture
def tiny_file(tiny_settings: Any, tmp_path: Path) -> str:
    """A small experiment that runs in this process, as a file."""
    path = tmp_path / "configs" / "tiny.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(tiny_settings("fibecfed", rounds=2)))
    return str(path)


@pytest.fixture
def no_fleet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a fleet is even made: bad input must be found before."""

    def made(*_: object) -> None:
        raise AssertionError("a fleet was made")

    monkeypatch.setattr("fibec_ray.runs.simulation.make_fleet", made)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that the command leaves on stderr, with exit code 2 and nothing on stdout."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("fibec-ray: ") and err.endswith("\n") and len(err.splitlines()) == 1, err
    assert out == ""
    return err


def log_of(folder: Path) -> list[Path]:
    return [path for table in ("rounds", "devices", "layers") for path in folder.rglob(table)]


# --- bad input


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["local.batchsize=4"], "local.batchsize: no such key; did you mean 'batch_size'?"),
        (["method=fedvag"], "method: no method is called 'fedvag'; did you mean 'fedavg'?"),
        (["method.sharing=gall"], "method.sharing: no such kind 'gall'; did you mean 'gal'?"),
        (["rounds"], "'rounds': expected key=value"),
        (["partition=dirichlet_quantity", "partition.alpha=0.01"], "partition.alpha: 0.01 leaves device"),
        (["num_devices=73"], "num_devices: 73 devices, but only 72 training samples"),
        (["data.synthetic.num_classes=2", "data.path=x"], "data.path: has no effect"),
        (["backbone.tokenizer=/no/such/folder"], "backbone.tokenizer: cannot load '/no/such/folder'"),
        (["method.sharing=two\\nlines"], "no such kind"),
        (['method.sharing="two\\nlines"'], "no such kind"),
        (['"two\\nlines"=1'], "no such key"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(
    overrides: list[str], says: str, tiny_file: str, tmp_path: Path, capsys: Any, no_fleet: None
) -> None:
    out = tmp_path / "run"
    assert says in refused(capsys, "run", tiny_file, *overrides, "--out", str(out))
    assert log_of(tmp_path) == []


def test_a_missing_data_file(tiny_file: str, tmp_path: Path, capsys: Any, no_fleet: None) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dev.csv").write_text("sentence,label\n")
    message = refused(
        capsys, "run", tiny_file, "task=sst2", "data={}", f"data.path={tmp_path / 'data'}", "--out", str(tmp_path / "r")
    )
    assert "no file train{.parquet" in message and "the folder holds dev.csv" in message
    assert log_of(tmp_path) == []


def test_a_missing_data_folder(tiny_file: str, tmp_path: Path, capsys: Any, no_fleet: None) -> None:
    message = refused(capsys, "run", tiny_file, "task=sst2", "data={path: /no/such}", "--out", str(tmp_path / "run"))
    assert "data.path: /no/such: no such file or folder" in message
    assert log_of(tmp_path) == []


def test_a_label_column_that_is_not_there(tiny_file: str, tmp_path: Path, capsys: Any, no_fleet: None) -> None:
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("sentence,label\ngood,1\nbad,0\n")
    changes = ["task=sst2", f"data={{path: {tmp_path}, label_column: sentiment}}"]
    message = refused(capsys, "run", tiny_file, *changes, "--out", str(tmp_path / "run"))
    assert str(tmp_path / "train.csv") in message
    assert "sentiment" in message and "sentence" in message and "label" in message
    assert log_of(tmp_path) == []


def test_a_run_directory_below_a_regular_file(tiny_file: str, tmp_path: Path, capsys: Any, no_fleet: None) -> None:
    (tmp_path / "file").write_text("")
    message = refused(capsys, "run", tiny_file, "--out", str(tmp_path / "file" / "run"))
    assert "cannot be written (Not a directory); choose another --out" in message


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that nobody can write to: /proc")
def test_a_run_directory_that_nobody_can_write_to(tiny_file: str, capsys: Any, no_fleet: None) -> None:
    assert "cannot be written" in refused(capsys, "run", tiny_file, "--out", "/proc/fibec-ray-run")


def test_a_run_directory_that_holds_something(tiny_file: str, tmp_path: Path, capsys: Any, no_fleet: None) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    assert "is not empty; choose another --out" in refused(capsys, "run", tiny_file, "--out", str(out))
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_an_experiment_file_that_is_not_there(tmp_path: Path, capsys: Any) -> None:
    path = str(tmp_path / "none.yaml")
    for command in ("run", "show"):
        assert f"{path}: cannot be read" in refused(capsys, command, path)


def test_once_the_mistake_is_mended_the_same_folder_will_do(tiny_file: str, tmp_path: Path, capsys: Any) -> None:
    out = ["--out", str(tmp_path / "run")]
    refused(capsys, "run", tiny_file, *out, "num_devices=73")
    assert not (tmp_path / "run").exists()
    assert main(["run", tiny_file, *out, "rounds=1"]) == 0


def test_a_report_of_a_folder_without_a_log(tmp_path: Path, capsys: Any) -> None:
    assert "no round log here" in refused(capsys, "report", str(tmp_path))
    assert "no round log here" in refused(capsys, "report", str(tmp_path / "none"))
    assert list(tmp_path.iterdir()) == []


def test_a_backbone_that_cannot_be_had_is_one_line(tiny_file: str, tmp_path: Path, capsys: Any) -> None:
    """Found when the run is planned, before any weights are; nothing is left behind."""
    arguments = ["run", tiny_file, "method.peft={kind: lora, target_modules: [queri]}", "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert "method.peft.target_modules" in err and "query" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["rnu"], "no such command 'rnu'; did you mean 'run'?"),
        (["run", QUICKSTART, "--ot", "x"], "--ot: no such option; did you mean '--out'?"),
        (["run", QUICKSTART, "--rouns", "3"], "--rouns: no such option; did you mean '--rounds'?"),
        (["run", QUICKSTART, "--rounds"], "--rounds: expected a value, such as rounds=VALUE"),
        (["run", QUICKSTART, "--rounds", "--resume"], "--rounds: expected a value"),
        (["run", QUICKSTART, "--output_dir", "x"], "--output_dir: no such option; did you mean '--out'?"),
        (["run", QUICKSTART, "-x"], "run: unrecognized arguments: -x; see fibec-ray run --help"),
        (["watch", "x", "y"], "watch: unrecognized arguments: y; see fibec-ray watch --help"),
        (["watch"], "watch: the following arguments are required: RUN; see fibec-ray watch --help"),
        (["verify", "x", "--roundz", "3"], "--roundz: no such option; did you mean '--rounds'?"),
        (["watch", "x", "--rounds", "3"], "--rounds: no such option; allowed: --help"),
        (["--nonsense"], "unrecognized arguments: --nonsense; see --help"),
        (["run", "quikstart"], "no config is called 'quikstart'; did you mean 'quickstart'?"),
        (["sweep", "method", "--out", "x"], "no config is called 'method'; did you mean 'methods'?"),
    ],
)
def test_a_command_line_that_makes_no_sense(arguments: list[str], says: str, capsys: Any) -> None:
    assert says in refused(capsys, *arguments)


def test_bare_command_prints_help_with_every_command(capsys: Any) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: fibec-ray")
    _, parsers = build_parser()
    for name, parser in parsers.commands.items():
        assert f"  {name} " in out and parser.description is not None
    assert max(map(len, out.splitlines())) <= 80


def test_version(capsys: Any) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fibec-ray {version('fibec_ray')}\n"


# --- show


def test_show_prints_yaml_that_loads_to_the_same_experiment(tmp_path: Path, capsys: Any) -> None:
    assert main(["show", QUICKSTART, "method=fedprox", "local.clip=null"]) == 0
    path = tmp_path / "shown.yaml"
    path.write_text(capsys.readouterr().out)
    experiment = load_experiment(Path(QUICKSTART), ["method=fedprox", "local.clip=null"])
    assert load_experiment(path) == experiment
    assert yaml.safe_load(path.read_text()) == resolved(experiment)


# --- run, report


def test_run_ends_with_both_models_beside_both_anchors(tiny_file: str, tmp_path: Path, capsys: Any) -> None:
    """Also: overrides may stand before and after options, and the run directory is complete."""
    out = tmp_path / "run"
    assert main(["run", tiny_file, "local.epochs=2", "--out", str(out), "seed=5"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    summary = json.loads((out / "summary.json").read_text())
    anchors = summary["anchors"]
    assert summary["backend"] == "plain" and summary["backend_reason"].startswith("auto: no GPU; the base has 0.0 GB")
    for words in (
        f"backbone plain ({summary['backend_reason']})",
        "global model, test set",
        "personal model, own test shards",
        "anchor: majority class",
        "anchor: device's own majority class",
        f"{anchors['majority']:.3f}",
        f"{anchors['own_majority']:.3f}",
        f"run directory: {out}",
    ):
        assert words in printed.out
    config = load_experiment(out / "config.yaml")
    assert (config.seed, config.rounds) == (5, 2)
    for name in ("rounds/init.parquet", "rounds/part-000001.parquet", "adapter/adapter_model.safetensors"):
        assert (out / name).is_file()

    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    assert (out / "report.html").stat().st_size > 10_000


def test_a_run_is_judged_by_the_metric_of_its_task(tiny_file: str, tmp_path: Path, capsys: Any) -> None:
    for split, rows in (("train", 48), ("validation", 18)):
        texts = [f"{('good', 'bad')[at % 2]} film {at},{1 - at % 2}" for at in range(rows)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["sentence,label", *texts]))
    out = tmp_path / "run"
    changes = ["task=sst2", "task.metric=accuracy_f1", f"data={{path: {tmp_path}, max_length: 16}}"]
    assert main(["run", tiny_file, *changes, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "accuracy_f1" in printed and "best accuracy_f1" in printed
    (always_0,) = [line for line in printed.splitlines() if "anchor: majority class" in line]
    assert [cell.strip() for cell in always_0.split("│")[2:4]] == ["0.500", "0.250"]  # accuracy, and its mean with F1
    rounds = [row for part in sorted((out / "rounds").glob("part-*")) for row in pq.read_table(part).to_pylist()]
    scores = [row["global_metric"] for row in rounds if row["global_metric"] is not None]
    assert scores and all(f"global {score:.3f}" in printed for score in scores)
    assert main(["compare", str(out)]) == 0
    assert "accuracy_f1" in capsys.readouterr().out
    assert main(["runs", str(tmp_path)]) == 0
    best = max(max(row[f"{model}_metric"] or 0 for row in rounds) for model in ("global", "personal"))
    assert f"{best:.4f}" in capsys.readouterr().out


def test_runs_and_compare_and_a_page_of_two(tiny_file: str, tmp_path: Path, capsys: Any) -> None:
    for seed in (0, 1):
        assert main(["run", tiny_file, "--out", str(tmp_path / f"seed-{seed}"), f"seed={seed}"]) == 0
    both = [str(tmp_path / f"seed-{seed}") for seed in (0, 1)]
    capsys.readouterr()
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("| finished |") == 2
    assert main(["compare", *both, "--out", str(tmp_path / "tables"), "--format", "latex"]) == 0
    assert r"\toprule" in capsys.readouterr().out
    assert "worst decile" in (tmp_path / "tables" / "compare.md").read_text()
    assert "no variant 'x' to compare with" in refused(capsys, "compare", *both, "--reference", "x")
    assert main(["report", *both, "--out", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").stat().st_size > 10_000


def test_a_run_that_trains_nothing_ends_as_others_do(tiny_file: str, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    assert main(["run", tiny_file, "method=zero-shot", "--out", str(out)]) == 0
    assert "global" in capsys.readouterr().out
    assert main(["report", str(out)]) == 0 and (out / "report.html").is_file()


def test_a_regression_ends_with_its_own_score_and_anchors(tmp_path: Path, capsys: Any) -> None:
    """And nowhere with an accuracy."""
    path, out = tmp_path / "regression.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(make_regression(rounds=2)))
    assert main(["run", str(path), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert (
        "global model, test set; personal models are the same" in printed.out and "own test shards" not in printed.out
    )
    anchors = json.loads((out / "summary.json").read_text())["anchors"]
    for words in ("r2", "anchor: mean", "anchor: device's own mean", f"{anchors['own_mean']:.3f}", "round 2: global "):
        assert words in printed.out
    assert printed.err == "" and "accuracy" not in printed.out and "majority" not in printed.out
    assert main(["report", str(out), "--figures", str(tmp_path / "figures")]) == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "metric_by_rounds.svg").is_file()
    assert "Global r2" in page and "each device's mean" in page and "half squared error" in page
    assert "Global accuracy" not in page and "Accuracy by" not in page and "Length seen" not in page


def test_without_out_runs_are_numbered(tiny_file: str, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    quick = [
        "method=fedavg",
        "rounds=1",
        "num_devices=2",
        "cohort_size=1",
        "data.synthetic={num_train: 8, num_test: 4}",
    ]
    for name in ("tiny", "tiny-2"):
        assert main(["run", tiny_file, *quick]) == 0
        assert f"run directory: {tmp_path / 'runs' / name}" in capsys.readouterr().out
        assert (tmp_path / "runs" / name / "adapter").is_dir()


# --- as a program of its own: exit code and streams, a start each


def program(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fibec_ray", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_the_program_refuses_in_one_line() -> None:
    done = program("run", QUICKSTART, "method=fedvag")
    assert done.returncode == 2
    assert done.stderr == "fibec-ray: method: no method is called 'fedvag'; did you mean 'fedavg'?\n"
    assert done.stdout == ""


def test_the_program_runs(tiny_file: str, tmp_path: Path) -> None:
    """Nothing on stderr: no progress bars, warnings or advice of the libraries. Works from any folder."""
    out = tmp_path / "run"
    done = program("run", tiny_file, "rounds=1", "--out", str(out), cwd=tmp_path, env=os.environ | {"COLUMNS": "120"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "anchor: majority class" in done.stdout and "anchor: device's own majority class" in done.stdout


def test_a_run_in_ascii_whose_reader_has_gone_comes_to_its_end(tmp_path: Path) -> None:
    """And what names it is not read as markup."""
    file = tmp_path / "network.yaml"
    file.write_text(yaml.safe_dump(make_regression("fibecfed", rounds=2)))
    command = (
        f"'{sys.executable}' -m fibec_ray run '{file}' 'name=tré :smile:[lora]' evaluation.every=1 "
        "--out 'rün [/]' | head -n 2; exit ${PIPESTATUS[0]}"
    )
    env = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(rb"tr\xe9 :smile:[lora]: fibecfed on") and done.stdout.count(b"\n") == 2
    assert json.loads((tmp_path / "rün [/]" / "summary.json").read_text())["status"] == "finished"


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"'{sys.executable}' -m fibec_ray show '{QUICKSTART}' | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("name: quickstart\n", "")
    assert done.returncode == 0
