"""A new kind of task is one file (`vowels.py`) and one line, and has everything that the packaged kinds have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fibec_ray.config.load import check
from fibec_ray.preflight.check import foresee
from fibec_ray.roundlog.reader import read_rounds
from fibec_ray.runs.simulation import cache_dir, prepare, simulate
from fibec_ray.tasks import TASKS

from tasks.vowels import Vowels  # isort: skip


@pytest.fixture
def one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "vowels", Vowels)


def settings(tiny_settings: Any, method: str = "fedavg", **changes: Any) -> Any:
    found = tiny_settings(method, **changes)
    return found | {"task": {"name": "count", "kind": "vowels"}, "data": {"max_length": 16}}


@pytest.mark.usefixtures("one_line")
@pytest.mark.parametrize("method", ["fedavg", "fibecfed", "fipa"])
def test_it_trains_is_planned_and_is_scored(method: str, tiny_settings: Any, tmp_path: Path) -> None:
    experiment = check(settings(tiny_settings, method), "test")
    outlook = foresee(experiment, prepare, tmp_path / "plan", cache_dir())
    run = simulate(experiment, tmp_path / "run")
    rows = read_rounds(run.folder).to_pylist()
    last = rows[-1]
    assert last["global_accuracy"] is not None or last["personal_accuracy"] is not None
    assert -6 <= last["personal_metric"] <= 0 and last["personal_metrics"] == [("words", 1.0)]
    flops = sum(row["flops"] for row in rows)
    planned = outlook.work.setup_flops + sum(outlook.work.rounds_flops)
    assert planned == pytest.approx(flops, rel=0.25)


@pytest.mark.usefixtures("one_line")
def test_a_setting_of_another_kind_is_refused(tiny_settings: Any, tmp_path: Path) -> None:
    from fibec_ray.errors import ConfigError, DataError

    with pytest.raises(ConfigError, match="task.verbaliser: no such key; kind vowels does not have it; set task.kind"):
        check(settings(tiny_settings) | {"task": {"name": "count", "kind": "vowels", "verbaliser": ["a"]}}, "test")
    with pytest.raises(DataError, match="data.path: has no effect, because task count makes its own rows"):
        prepare(check(settings(tiny_settings) | {"data": {"path": "x.csv"}}, "test"), tmp_path)


def test_the_kind_of_the_documentation_runs(
    tiny_settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    monkeypatch.setitem(TASKS, "vowels", Vowels)  # so that the page's own line is undone too
    exec(compile(code, "docs/tasks.md", "exec", dont_inherit=True), {"__name__": "page"})
    assert TASKS["vowels"] is not Vowels
    made = tiny_settings(rounds=1) | {"task": {"name": "count", "kind": "vowels"}, "data": {"max_length": 16}}
    run = simulate(check(made, "test"), tmp_path / "run")
    assert run.rows[-1]["global_accuracy"] is not None
