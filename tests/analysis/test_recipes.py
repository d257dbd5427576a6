"""What the folder `analysis/` holds for users runs as it stands: recipes, figures and notebooks, on made-up runs."""

from __future__ import annotations

import os
import re
import runpy
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nbformat
import polars as pl
import pytest
import yaml
from round_logs import big_run, metadata, rounds_row

from fibec_ray.analysis.variants import Collection, collect
from fibec_ray.reports import BatchScore, DeviceReport
from fibec_ray.roundlog.writer import RoundLog

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "analysis"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
OTHERS = {FOLDER / "figures" / name for name in ("front_page.py", "ranks.py")}
"""Figures of other runs; test_ranks.py draws the second."""
FIGURES = sorted(set(FOLDER.glob("figures/*.py")) - OTHERS)
RECIPES = runpy.run_path(str(FOLDER / "recipes.py"))


@pytest.fixture
def runs(tmp_path: Path) -> Collection:
    a_sweep(tmp_path / "sweep")
    return collect([tmp_path / "sweep"])


def a_sweep(out: Path) -> None:
    """One variant, one seed. Shards of 10, 20 and 30 samples; accuracy .2, .4 and .9, each device's own.

    Device 2 is the slowest in both rounds, by 1 and by 2 s. Of its batches the harder has more loss and is shorter.
    """
    log = RoundLog(out / "one" / "seed-0", metadata())
    batches = (BatchScore(0, 8, 0.1, 0.5, 9.0, None), BatchScore(1, 8, 0.2, 1.5, 7.0, None))
    log.append(rounds_row(-1, bytes_up=7_000_000), [DeviceReport(-1, 0, num_samples=10, batches=batches)], [])
    for round_, slowest in ((0, 3.0), (1, 4.0)):
        times = (1.0, 2.0, slowest)
        devices = [DeviceReport(round_, d, num_samples=10 * (d + 1), sim_time_s=time) for d, time in enumerate(times)]
        scores = (0.2, 0.4, 0.9) if round_ else (0.0, 0.0, 0.0)
        same = {"round": round_, "num_samples": 10, "trained": True, "loss": 0.5, "speed_class": None}
        evaluations = [same | {"device": d, "accuracy": score} for d, score in enumerate(scores)]
        row = rounds_row(round_, bytes_up=2_000_000, bytes_down=1_000_000 * (round_ + 1))
        log.append(row, devices, [], evaluations)
    (out / "one" / "seed-0" / "summary.json").write_text('{"status": "finished"}')
    write_record(out, ["one"], [0])


def write_record(out: Path, variants: list[str], seeds: list[int]) -> None:
    entries = [{"name": name, "group": "", "folder": name} for name in variants]
    record = {"name": "s", "seeds": seeds, "reference": variants[0], "variants": entries}
    (out / "sweep.yaml").write_text(yaml.safe_dump(record))


@pytest.fixture(scope="module")
def full_sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, two seeds, every column that a log can have."""
    out = tmp_path_factory.mktemp("full")
    for method in ("fibecfed", "fedavg"):
        for seed in (0, 1):
            big_run(out / method / f"seed-{seed}", num_rounds=4, num_devices=3)
    write_record(out, ["fibecfed", "fedavg"], [0, 1])
    return out


# --- recipes


def only_row(answer: pl.DataFrame) -> dict[str, Any]:
    (row,) = answer.to_dicts()
    return row


def test_small_shards(runs: Collection) -> None:
    assert only_row(RECIPES["small_shards"](runs)) == {
        "variant": "one",
        "smaller_half": pytest.approx(0.3),
        "larger_half": pytest.approx(0.9),
        "rank_correlation": pytest.approx(1.0),
    }


def test_difficulty(runs: Collection) -> None:
    assert only_row(RECIPES["difficulty"](runs)) == {
        "variant": "one",
        "batches": 2,
        "with_loss": pytest.approx(1.0),
        "with_length": pytest.approx(-1.0),
        "loss_in_easiest_fifth": 0.0,
    }


def test_sql(runs: Collection) -> None:
    slowest, traffic = map(only_row, RECIPES["sql"](runs))
    assert slowest == {"variant": "one", "device": 2, "rounds": 2, "saved_s": pytest.approx(3.0)}
    assert traffic == {"variant": "one", "up_mb": pytest.approx(2.0), "down_mb": pytest.approx(1.5)}


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs a script as a command does, in this process, which has loaded its libraries already."""

    def run(path: Path, *arguments: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", [str(path), *map(str, arguments)])
        runpy.run_path(str(path), run_name="__main__")

    return run


def test_recipes_print_every_answer(
    full_sweep: Path, run_script: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    run_script(FOLDER / "recipes.py", full_sweep)
    assert capsys.readouterr().out.count("shape: ") == 4


@pytest.mark.parametrize("script", [FOLDER / "recipes.py", *FIGURES], ids=lambda path: path.stem)
def test_a_folder_without_runs_is_one_line(
    script: Path, tmp_path: Path, run_script: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_script(script, tmp_path)
    assert stopped.value.code == 2
    assert f"{tmp_path}/rounds: no round log here" in capsys.readouterr().err


# --- figures and notebooks


@pytest.mark.parametrize("script", FIGURES, ids=lambda path: path.stem)
def test_figures_are_drawn(script: Path, full_sweep: Path, tmp_path: Path, run_script: Callable[..., None]) -> None:
    places = [full_sweep / "fibecfed" / "seed-0"] if script.stem == "fibecfed" else [full_sweep]
    run_script(script, *places, "--out", tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text().count("<path") > 20


def test_the_figure_of_the_front_page_is_drawn_for_light_and_dark_pages(
    full_sweep: Path, tmp_path: Path, run_script: Callable[..., None]
) -> None:
    run_script(FOLDER / "figures" / "front_page.py", full_sweep / "fibecfed" / "seed-0", "--out", tmp_path / "images")
    assert {path.name for path in (tmp_path / "images").iterdir()} == {
        "quickstart.svg",
        "quickstart-dark.svg",
        "quickstart.png",
    }
    light, dark = ((tmp_path / "images" / name).read_text() for name in ("quickstart.svg", "quickstart-dark.svg"))
    assert "#0072b2" in light.lower() and "#4aa8e8" in dark.lower() and "#0072b2" not in dark.lower()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user runs them: in an empty folder, with the library as it is here."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    cells = runpy.run_path(str(FOLDER / "execute.py"))["executed"](path, tmp_path).cells
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert [output for output in outputs if output.get("name") == "stderr"] == []
    assert [name for output in outputs for name in output.get("data", {})].count("image/png") >= 1
    assert [folder.name for folder in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_with_outputs_of_no_particular_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    cells = nbformat.reads(text, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 1
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code"), "run analysis/execute.py"
    assert [word for word in ("site-packages", "/home/", "/tmp/", "/root/", "Warning") if word in text] == []


# --- the folder


def test_the_page_about_recipes_runs(full_sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "sweep").symlink_to(full_sweep)
    (tmp_path / "runs" / "mine").symlink_to(full_sweep / "fedavg" / "seed-0")
    monkeypatch.chdir(tmp_path)
    assert len(blocks) == 2
    for code in blocks:
        exec(compile(code, "recipes.md", "exec"), {})


def test_the_readme_names_every_file() -> None:
    page = (FOLDER / "README.md").read_text()
    files = [path for path in FOLDER.rglob("*") if path.suffix in (".ipynb", ".py", ".sql")]
    assert len(files) >= 6
    assert [path for path in files if f"`{path.relative_to(FOLDER)}`" not in page] == []


def test_nothing_of_it_is_installed() -> None:
    """A wheel holds the package alone, so no module named `analysis` can be imported."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["fibec_ray"]
    assert set(wheel["force-include"].values()) == {"fibec_ray/configs"}
    assert not list(FOLDER.rglob("__init__.py"))
