"""The Python interface: what `import fibec_ray` offers, on tiny runs in this process."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
import yaml
from conftest import Settings

import fibec_ray
from fibec_ray.api.data import data_settings
from fibec_ray.api.settings import experiment_of, overrides_of
from fibec_ray.errors import ConfigError, DataError, RunDirError

TINY: dict[str, Any] = {
    "rounds": 2,
    "num_devices": 4,
    "cohort_size": 2,
    "data": {"max_train": 80, "max_test": 40},
    "local": {"epochs": 1},
    "fleet": {"kind": "local"},
    "evaluation": {"every": 1},
}
"""Changes of the packaged experiment `digits`: half a second a run."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> fibec_ray.Run:
    out = tmp_path_factory.mktemp("api") / "run"
    return fibec_ray.run("digits", out=out, **TINY)


# --- the import


def test_the_import_is_light() -> None:
    code = """
import sys, time
started = time.perf_counter()
import fibec_ray
took = time.perf_counter() - started
heavy = {"torch", "transformers", "ray", "polars", "pydantic", "numpy"} & sys.modules.keys()
assert not heavy, heavy
assert took < 0.3, took
print(fibec_ray.__version__)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert found.stdout[0].isdigit()


def test_every_public_name_is_there() -> None:
    for name in fibec_ray.__all__:
        assert getattr(fibec_ray, name) is not None, name
    assert dir(fibec_ray) == fibec_ray.__all__


def test_type_checkers_see_the_names_that_are_loaded_lazily() -> None:
    source = Path(fibec_ray.__file__).read_text(encoding="utf-8")
    (block,) = [
        node for node in ast.parse(source).body if isinstance(node, ast.If) and "not" not in ast.unparse(node.test)
    ]
    typed = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert typed == fibec_ray._HOMES
    assert sorted([*typed, "__version__"]) == fibec_ray.__all__
    assert Path(fibec_ray.__file__).with_name("py.typed").is_file()


def test_a_misspelt_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        getattr(fibec_ray, "runn")  # noqa: B009


# --- experiments from Python values


def test_an_experiment_is_a_path_a_name_a_dict_or_an_experiment(tmp_path: Path, tiny_settings: Settings) -> None:
    named = experiment_of("digits", {"rounds": 3})
    assert (named.name, named.rounds) == ("digits", 3)
    raw = {"rounds": 3, "num_devices": 4, "cohort_size": 2, "task": "trec", "method": "fibecfed", "backbone": "minilm"}
    plain = experiment_of(raw, {})
    assert (plain.task.name, plain.method.name) == ("trec", "fibecfed")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(raw | {"name": "experiment"}))
    assert experiment_of(tmp_path / "mine.yaml", {}) == experiment_of(str(tmp_path / "mine.yaml"), {}) == plain
    assert experiment_of(plain, {}) is plain
    assert experiment_of(plain, {"method": "fedavg"}).method.name == "fedavg"
    with pytest.raises(ConfigError, match="experiment: expected the path of a YAML file, .* found int"):
        experiment_of(3, {})  # type: ignore[arg-type]


def test_changes_are_merged_and_a_kind_replaces() -> None:
    before = experiment_of("digits", {})
    after = experiment_of(
        "digits", {"local": {"epochs": 2}, "partition": {"kind": "iid"}, "evaluation.every": 2, "name": "mine"}
    )
    assert after.local == before.local.model_copy(update={"epochs": 2})
    assert (after.partition.kind, after.evaluation.every, after.name) == ("iid", 2, "mine")
    mine = fibec_ray.Method(name="mine", aggregator="median")  # type: ignore[arg-type]
    assert experiment_of("digits", {"method": mine}).method.aggregator == mine.aggregator


def test_values_come_out_as_they_went_in() -> None:
    import numpy as np

    values = {"a": 1e-05, "b": "1e-5", "c": None, "d": True, "e": [1, "x: y", "#"], "f": Path("/a b"), "g": "ä'\"\n"}
    texts = dict(text.split("=", 1) for text in overrides_of(values | {"h": np.float32(0.5), "i": {}}))
    found = {key: yaml.safe_load(text) for key, text in texts.items()}
    assert found == values | {"f": "/a b", "h": 0.5, "i": {}}
    with pytest.raises(ConfigError, match="local.epochs: expected a plain value, found object"):
        list(overrides_of({"local": {"epochs": object()}}))
    with pytest.raises(ConfigError, match="local: the key 3 is not a string; put it in quotes"):
        list(overrides_of({"local": {3: 1}}))


# --- a run


def test_a_run_gives_its_tables(finished: fibec_ray.Run) -> None:
    assert (finished.status, finished.name) == ("finished", "digits")
    rounds = finished.rounds()
    assert isinstance(rounds, pl.DataFrame) and rounds["round"].to_list() == [-1, 0, 1]
    same = finished.rounds(to="pandas")
    assert isinstance(same, pd.DataFrame) and same["round"].tolist() == [-1, 0, 1]
    assert len(finished.devices()) == 4 and len(finished.evaluations()) == 8
    assert finished.layers()["shared"].all() and len(finished.table("batches")) == 0
    assert finished.config["rounds"] == 2 and finished.summary["method"] == "fedavg"
    with pytest.raises(ConfigError, match="round: the round log has no such table; did you mean 'rounds'?"):
        finished.table("round")
    with pytest.raises(ConfigError, match="to: expected 'polars' or 'pandas', found 'numpy'"):
        finished.rounds(to="numpy")  # type: ignore[call-overload]


def test_the_best_score_is_the_highest_of_the_log(finished: fibec_ray.Run) -> None:
    best = finished.best("global")
    scores = finished.rounds()["global_accuracy"].drop_nulls()
    assert best.value == scores.max() and (best.metric, best.model) == ("accuracy", "global")
    assert finished.rounds().filter(pl.col("round") == best.after_rounds - 1)["global_accuracy"][0] == best.value
    assert finished.best() == finished.best("personal")
    with pytest.raises(ConfigError, match="model: expected 'personal' or 'global', found 'server'"):
        finished.best("server")  # type: ignore[arg-type]


def test_a_run_draws_and_reports(finished: fibec_ray.Run, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    names = finished.figures()
    assert names[0] == "accuracy_by_rounds"
    figure = finished.figure()
    assert isinstance(figure, Figure) and figure._repr_png_()[:4] == b"\x89PNG"
    assert finished.figure(names[1]).axes[0].get_xlabel() != figure.axes[0].get_xlabel()
    with pytest.raises(ConfigError, match="accuracy_by_round: no such figure; did you mean 'accuracy_by_rounds'?"):
        finished.figure("accuracy_by_round")
    assert finished.report(tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_a_run_says_what_it_is(finished: fibec_ray.Run) -> None:
    assert repr(finished).startswith(f"Run('{finished.folder}': method fedavg, task digits, seed 0, status finished")
    assert "<td>fedavg</td>" in finished._repr_html_()
    again = fibec_ray.open_run(finished.folder)
    assert again.best() == finished.best()
    assert again.resume().rounds().equals(finished.rounds())  # finished: nothing to do


class Recorder(fibec_ray.Callback):
    """Writes down its calls, and interrupts the run after some round, as Ctrl-C does."""

    def __init__(self, stop_after: int | None = None):
        self.calls: list[str] = []
        self._stop_after = stop_after

    def on_data(self, prepared: Any) -> None:
        self.calls.append("data")

    def on_start(self, fleet: Any) -> None:
        self.calls.append(f"start on {fleet.device}")

    def on_round_end(self, row: dict[str, Any]) -> None:
        self.calls.append(f"round {row['round']}")
        if row["round"] == self._stop_after:
            raise KeyboardInterrupt


def test_callbacks_follow_a_run_and_ctrl_c_leaves_one_to_resume(
    finished: fibec_ray.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = Recorder(stop_after=0)
    with pytest.raises(KeyboardInterrupt) as stopped:
        fibec_ray.run("digits", out=tmp_path / "run", callbacks=stopping, **TINY)
    assert stopping.calls == ["data", "start on cpu", "round -1", "round 0"]
    line = f"fibec_ray.open_run('{tmp_path / 'run'}').resume()"
    assert stopped.value.__notes__ == [f"interrupted; continue with {line}"]
    assert fibec_ray.open_run(tmp_path / "run").status == "failed"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fibec_ray.open_run("~/run").folder == tmp_path / "run"
    run = eval(line)
    assert run.status == "finished" and run.summary["adapter_digest"] == finished.summary["adapter_digest"]


def test_an_interrupted_run_at_a_url_goes_on(finished: fibec_ray.Run, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("FIBEC_RAY_RUNS", str(tmp_path / "near"))
    url = f"file://{tmp_path / 'bucket' / 'run'}"
    with pytest.raises(KeyboardInterrupt) as stopped:
        fibec_ray.run("digits", out=url, callbacks=Recorder(stop_after=0), **TINY)
    assert stopped.value.__notes__ == [f"interrupted; continue with fibec_ray.open_run({url!r}).resume()"]
    run = fibec_ray.open_run(url).resume()
    assert run.status == "finished" and run.summary["adapter_digest"] == finished.summary["adapter_digest"]


def test_what_is_no_callback_is_refused_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found the class Recorder; give an object, Recorder()"):
        fibec_ray.run("digits", out=tmp_path / "run", callbacks=[Recorder], **TINY)  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="found the class Recorder; give an object, Recorder()"):
        fibec_ray.run("digits", out=tmp_path / "run", callbacks=Recorder, **TINY)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()


def test_errors_are_exceptions_with_one_clear_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(fibec_ray.UserError, match="roundz.*did you mean 'rounds'"):
        fibec_ray.run("digits", roundz=3)
    with pytest.raises(fibec_ray.UserError, match="no config is called 'digit'; did you mean 'digits'"):
        fibec_ray.run("digit")
    with pytest.raises(RunDirError, match="no round log here"):
        fibec_ray.open_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_progress_bar_counts_rounds_and_is_quiet_in_a_pipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fibec_ray.run("digits", out=tmp_path / "quiet", **TINY)
    assert capsys.readouterr() == ("", "")
    fibec_ray.run("digits", out=tmp_path / "shown", progress=True, **TINY)
    shown = capsys.readouterr().err
    assert "digits: 100%" in shown and "2/2" in shown and "personal=" in shown
    assert shown.count("digits:   0%") == 1


# --- data


def frames() -> Iterator[Any]:
    import datasets

    rows = {"text": ["good", "bad"], "label": ["yes", "no"]}
    yield from (pl.DataFrame(rows), pd.DataFrame(rows), datasets.Dataset.from_dict(rows))


def test_a_frame_is_written_beside_the_run(tmp_path: Path) -> None:
    for frame in frames():
        written = Path(data_settings(frame, tmp_path / "run")["data"]["path"])
        assert written.parents[1] == tmp_path / ".data" and written.name == "own-data.parquet"
        assert pl.read_parquet(written)["text"].to_list() == ["good", "bad"]
        assert data_settings(frame, tmp_path / "other")["data"]["path"] == str(written)
    assert not list((tmp_path / ".data").glob("*.part"))
    assert data_settings("mine.csv", None) == {"data": {"path": "mine.csv"}}
    assert data_settings({"max_train": 3}, None) == {"data": {"max_train": 3}}


def test_what_is_no_frame_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found LazyFrame; a LazyFrame needs .collect()"):
        data_settings(pl.LazyFrame({"a": [1]}), tmp_path / "run")
    with pytest.raises(DataError, match="this frame cannot be written as Parquet"):
        data_settings(pd.DataFrame({"a": [object(), 1]}), tmp_path / "run")
    with pytest.raises(DataError, match="found dict; .* a DatasetDict one of its splits"):
        data_settings({"train": pd.DataFrame({"text": ["a"]})}, tmp_path / "run")
    assert not list(tmp_path.rglob("*.parquet"))


# --- sweeps


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> fibec_ray.Sweep:
    out = tmp_path_factory.mktemp("api") / "sweep"
    return fibec_ray.sweep("digits", vary={"method": ["fedavg", "local"]}, seeds=2, out=out, **TINY)


def test_a_sweep_runs_every_variant_and_seed(compared: fibec_ray.Sweep) -> None:
    assert {name: list(runs) for name, runs in compared.runs.items()} == {"fedavg": [0, 1], "local": [0, 1]}
    assert compared.runs["local"][1].config["seed"] == 1
    rounds = compared.rounds()
    assert rounds.group_by("variant", "seed").len()["len"].to_list() == [3] * 4
    assert repr(compared).endswith("2 variants, 4 finished runs)") and "seeds 0, 1" in compared._repr_html_()


def test_a_sweep_equals_its_runs_alone(compared: fibec_ray.Sweep, finished: fibec_ray.Run) -> None:
    assert compared.runs["fedavg"][0].summary["adapter_digest"] == finished.summary["adapter_digest"]


def test_a_sweep_compares_draws_and_opens_again(compared: fibec_ray.Sweep) -> None:
    comparison = compared.compare(model="personal")
    assert comparison.names[0] == "scores" and comparison._repr_markdown_() == str(comparison)
    assert comparison.table()["variant"].to_list() == ["fedavg", "local"]
    assert r"\begin{tabular}" in comparison.text("latex")
    assert "personal, best − fedavg" in compared.compare(model="personal", score="best").text()
    with pytest.raises(ConfigError, match="score: expected 'last' or 'best', found 'first'"):
        compared.compare(score="first")  # type: ignore[arg-type]
    (axes,) = compared.figure().axes
    assert axes.get_legend_handles_labels()[1] == ["fedavg", "local"]
    again = fibec_ray.open_sweep(compared.folders[0])
    assert again.figures() == compared.figures()
    both = fibec_ray.open_sweep([compared.runs["fedavg"][0].folder, compared.runs["local"][0].folder])
    assert list(both.runs) == ["fedavg", "local"]


def test_a_stopped_sweep_goes_on(compared: fibec_ray.Sweep, tmp_path: Path) -> None:
    options: dict[str, Any] = {"vary": {"method": ["fedavg", "local"]}, "seeds": [1], "out": tmp_path / "sweep", **TINY}
    with pytest.raises(KeyboardInterrupt):
        fibec_ray.sweep("digits", callbacks=Recorder(stop_after=0), **options)
    watching = Recorder()
    sweep = fibec_ray.sweep("digits", callbacks=watching, **options)
    assert watching.calls.count("round 0") == 1  # of the second variant; the first goes on with round 1
    for name in ("fedavg", "local"):
        assert sweep.runs[name][1].summary["adapter_digest"] == compared.runs[name][1].summary["adapter_digest"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vary": None}, "nothing to compare; give several values"),
        ({"vary": {"method": "fedavg"}}, "vary: method: expected a list of values, found 'fedavg'"),
        ({"vary": {"seed": [1, 2]}}, "vary: seed: give the seeds of a sweep as seeds="),
        ({"vary": {"rounds": [2, 2]}}, "would share the folder"),
        ({"vary": {"method": ["fedavg", "loca"]}}, "no method is called 'loca'; did you mean 'local'"),
        ({"vary": {"rounds": [2, 3]}, "seeds": [1, 1]}, "seeds: expected how many, or a list of different whole"),
        ({"vary": {"rounds": [2, 3]}, "jobs": 2, "callbacks": Recorder()}, "callbacks: are called in this process"),
    ],
)
def test_a_sweep_is_checked_before_its_first_run(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        fibec_ray.sweep("digits", out=tmp_path / "sweep", **options)
    assert not (tmp_path / "sweep").exists()


def test_a_sweep_needs_a_folder_and_takes_the_seeds_of_its_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a sweep needs a folder on this machine"):
        fibec_ray.sweep("digits", vary={"rounds": [1, 2]}, out="s3://bucket/sweep")
    file = tmp_path / "sweep.yaml"
    file.write_text("{config: digits, seeds: [0], reference: a, variants: {a: [], b: [rounds=2]}}", encoding="utf-8")
    with pytest.raises(ConfigError, match="sweep.yaml has its own; leave `seeds` out"):
        fibec_ray.sweep(file, seeds=2, out=tmp_path / "out")


def test_a_failed_run_stops_no_other(tmp_path: Path) -> None:
    options: dict[str, Any] = TINY | {"data": {"path": "/no/such.csv"}}
    with pytest.raises(fibec_ray.RunError, match="2 of 2 runs failed; fedavg, seed 0: .*no/such.csv"):
        fibec_ray.sweep("trec", vary={"method": ["fedavg", "local"]}, seeds=1, out=tmp_path / "sweep", **options)


# --- the page


def test_the_page_about_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its blocks, one after the other, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) > 6
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "python.md", "exec"), names)
    assert (tmp_path / "accuracy.pdf").is_file() and (tmp_path / "runs" / "compare" / "sweep.yaml").is_file()
