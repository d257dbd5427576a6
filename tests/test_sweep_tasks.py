"""Sweeps over several tasks, and sweep files that extend another one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from fibec_ray.api.sweep_plan import planned_sweep
from fibec_ray.cli.main import main
from fibec_ray.config.reading import read_yaml
from fibec_ray.errors import ConfigError, DataError, RunDirError, RunError
from fibec_ray.sweeps.folder import refuse_mixture
from fibec_ray.sweeps.load import load_sweep, load_sweeps
from fibec_ray.sweeps.run import refuse_failures, refuse_missing_data, run_sweep

BASE = {
    "config": "tiny.yaml",
    "overrides": ["rounds=2", "name={task}-tiny"],
    "seeds": [0],
    "reference": "fibecfed",
    "tasks": {"synthetic": ["local.batch_size=2"], "trec": ["rounds=5", "data={path: 'sets/{task}', max_length: 16}"]},
    "variants": {"fibecfed": ["method=fibecfed"], "Others": {"fedavg": ["method=fedavg"]}},
}


@pytest.fixture
def write(tmp_path: Path, tiny_settings: Any) -> Callable[..., Path]:
    """write("b.yaml", extends="a.yaml"): a sweep file beside a tiny experiment."""
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_settings("fedavg", rounds=1)))

    def written(name: str = "a.yaml", **content: Any) -> Path:
        (tmp_path / name).write_text(yaml.safe_dump(content or BASE, sort_keys=False))
        return tmp_path / name

    return written


def test_each_task_is_a_sweep_with_its_own_settings(write: Any) -> None:
    found = load_sweeps(write())
    assert {task: (sweep.name, len(sweep.runs)) for task, sweep in found.items()} == {
        "synthetic": ("a, synthetic", 2), "trec": ("a, trec", 2),
    }  # fmt: skip
    first, second = (found[task].runs[0].experiment for task in found)
    assert (first.task.name, first.rounds, first.local.batch_size) == ("synthetic", 2, 2)
    assert (second.task.name, second.rounds, second.local.batch_size) == ("trec", 5, 4)
    assert (second.data.path, second.name) == ("sets/trec", "trec-tiny")


def test_the_command_line_picks_tasks_and_beats_their_settings(write: Any) -> None:
    found = load_sweeps(write(), ["task=trec", "rounds=9", "name=my-{task}"])
    assert [(task, sweep.runs[0].experiment.rounds) for task, sweep in found.items()] == [("trec", 9)]
    assert found["trec"].runs[0].experiment.name == "my-trec"
    assert list(load_sweeps(write(), ["task=trec,synthetic"])) == ["trec", "synthetic"]


def test_overrides_of_variants_name_the_task_too(write: Any) -> None:
    variants = {"fibecfed": [], "other": ["name=own-{task}"]}
    found = load_sweeps(write(**BASE | {"variants": variants}))
    assert [run.experiment.name for run in found["trec"].runs if run.variant.name == "other"] == ["own-trec"]


def test_an_entry_names_its_data_set_which_overrides_can_name_too(write: Any) -> None:
    tasks = {"skewed": ["task=trec", "partition.alpha=0.1"], "trec": []}
    found = load_sweeps(write(**BASE | {"tasks": tasks}), ["data.path=sets/{set}", "name={task}"])
    runs = {task: sweep.runs[0].experiment for task, sweep in found.items()}
    assert {task: (one.task.name, one.data.path, one.name) for task, one in runs.items()} == {
        "skewed": ("trec", "sets/trec", "skewed"), "trec": ("trec", "sets/trec", "trec"),
    }  # fmt: skip


def test_missing_data_of_a_later_task_are_named_before_the_first_run(write: Any, tmp_path: Path) -> None:
    (tmp_path / "sets" / "synthetic").mkdir(parents=True)
    sweeps = load_sweeps(write(), [f"data.path={tmp_path}/sets/{{task}}"])
    with pytest.raises(DataError, match="^trec: data.path: .*sets/trec: no such file or folder; give a file of rows"):
        refuse_missing_data(sweeps, tmp_path / "out")
    (tmp_path / "sets" / "trec").mkdir()
    refuse_missing_data(sweeps, tmp_path / "out")


def test_a_file_that_extends_another_adds_and_replaces(write: Any, tmp_path: Path) -> None:
    write()
    (tmp_path / "below").mkdir()
    below = write(
        "below/b.yaml", extends="../a.yaml", overrides=["local.epochs=3"], seeds=[4],
        tasks={"trec": ["local.epochs=7"]},
        variants={"Others": {"fedavg": ["cohort_size=2"], "ditto": ["method=ditto"]}},
    )  # fmt: skip
    found = load_sweeps(below)
    assert {task: [run.label for run in sweep.runs] for task, sweep in found.items()} == dict.fromkeys(
        ("synthetic", "trec"), ["fibecfed, seed 4", "fedavg, seed 4", "ditto, seed 4"]
    )
    settings = {task: [(run.experiment.local.epochs, run.experiment.cohort_size) for run in s.runs]
                for task, s in found.items()}  # fmt: skip
    assert settings == {"synthetic": [(3, 3), (3, 2), (3, 3)], "trec": [(7, 3), (7, 2), (7, 3)]}
    assert list(load_sweeps(write("c.yaml", extends="a.yaml", tasks=["trec"]))) == ["trec"]


@pytest.mark.parametrize(
    ("changes", "overrides", "says"),
    [
        ({}, ["task=trek"], "the sweep has no task 'trek'; did you mean 'trec'?"),
        ({"tasks": {"TREC": []}}, [], "tasks: 'TREC' names a folder too; use lower-case letters, digits and -"),
        ({"tasks": {"trec": ["rounds"]}}, [], "task 'trec': 'rounds': expected key=value"),
        ({"tasks": {"trec": "rounds=2"}}, [], "tasks.trec: input should be a valid list"),
        ({"tasks": {"trek": []}}, [], "no task is called 'trek'; did you mean 'trec'?"),
        ({"table": "papre"}, [], "table: input should be 'sweep' or 'paper'"),
        ({"extends": "a.yaml"}, [], "extends: a.yaml is this file, or extends it; name another file"),
        ({"extends": "quickstart"}, [], "extends: expected a sweep file such as accuracy.yaml, found 'quickstart'"),
        ({"extends": "gone.yaml"}, [], "gone.yaml: cannot be read"),
    ],
)
def test_a_mistake_is_one_line_that_names_it(
    changes: dict[str, Any], overrides: list[str], says: str, write: Any
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweeps(write(**BASE | changes), overrides)
    assert says in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_a_list_of_tasks_names_those_of_the_other_file(write: Any) -> None:
    write()
    with pytest.raises(ConfigError, match=r"b.yaml: tasks: the sweep has no task .mr.; allowed: synthetic, trec"):
        load_sweeps(write("b.yaml", extends="a.yaml", tasks=["mr"]))


def test_a_failure_names_its_task(write: Any, tmp_path: Path) -> None:
    sweep = load_sweeps(write(), ["task=trec"])["trec"]
    failures = run_sweep(sweep, tmp_path / "out", 1, str, (sys.executable, "-c", "raise SystemExit('it broke')"))
    with pytest.raises(RunError, match="2 of 2 runs failed; trec, fibecfed, seed 0: exit code 1: it broke"):
        refuse_failures(failures, 2)


def test_one_sweep_cannot_stand_for_several_tasks(write: Any) -> None:
    with pytest.raises(
        ConfigError, match="has 2 tasks, and only the command line runs sweeps over tasks; use `fibec-ray sweep`"
    ):
        load_sweep(write())


def test_python_takes_a_file_that_extends_another(write: Any) -> None:
    write(**{key: value for key, value in BASE.items() if key not in ("tasks", "overrides")})
    plan = planned_sweep(write("b.yaml", extends="a.yaml", seeds=[1]), None, None, {"cohort_size": 2})
    assert [(run.label, run.experiment.cohort_size) for run in plan.runs] == [
        ("fibecfed, seed 1", 2), ("fedavg, seed 1", 2),
    ]  # fmt: skip


def test_the_folder_of_a_sweep_without_tasks_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").touch()
    refuse_mixture(tmp_path, [""])
    with pytest.raises(RunDirError, match="holds a sweep without tasks, and this one has 2; choose another --out"):
        refuse_mixture(tmp_path, ["trec", "mr"])


@pytest.mark.slow
def test_a_failed_run_does_not_keep_the_paper_table_back(write: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "empty").mkdir()
    broken = [f"data.path={tmp_path / 'empty'}", "data.train=none.csv"]
    content = BASE | {
        "tasks": {"one": ["task=synthetic"]}, "variants": {"fibecfed": [], "broken": broken}, "table": "paper"
    }  # fmt: skip
    assert main(["sweep", str(write(**content)), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr()
    assert "Reference: fibecfed." in printed.out and "1 of 2 runs failed; one, broken, seed 0" in printed.err


@pytest.mark.slow
def test_the_command_runs_one_sweep_per_task(write: Any, tmp_path: Path, capsys: Any) -> None:
    tasks = {"one": ["task=synthetic"], "two": ["task=synthetic", "rounds=1"]}
    content = BASE | {
        "tasks": tasks, "variants": {"fibecfed": []}, "overrides": ["evaluation.every=1"], "table": "paper"
    }  # fmt: skip
    out = tmp_path / "out"
    command = ["sweep", str(write(**content)), "--out", str(out)]
    assert main(command) == 0
    assert sorted(path.name for path in out.iterdir()) == ["one", "tables", "two"]
    assert {"paper.md", "paper.pdf", "paper-score.csv"} <= {path.name for path in (out / "tables").iterdir()}
    assert [read_yaml(out / task / "sweep.yaml")["name"] for task in tasks] == ["a, one", "a, two"]
    printed = capsys.readouterr().out
    assert "# Sweep a, one" in printed and "# Sweep a, two" in printed and "## Seconds to target" in printed
    assert main(command) == 0 and capsys.readouterr().out.count("1 finished before") == 2
