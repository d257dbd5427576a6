"""Sweeps with tuned values from a record, `tuned=FILE`: what they take, and which records are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import fibec_ray as package
from fibec_ray.cli.main import main
from fibec_ray.config.reading import read_yaml
from fibec_ray.errors import ConfigError
from fibec_ray.sweeps.load import load_sweep, load_sweeps
from fibec_ray.sweeps.tuned_record import failed_before

RATE = "local.learning_rate"
BASE: dict[str, Any] = {
    "config": "tiny.yaml",
    "seeds": [0],
    "reference": "fedavg",
    "variants": {
        "fedavg": ["method=fedavg"],
        "fipa": ["method=fipa"],
        "again": ["method=fedavg", "local.epochs=2"],
        "zero-shot": ["method=zero-shot"],
    },
    "tune": {
        "values": {RATE: ["1e-3", "1e-2"]},
        "seed": 100,
        "variants": {"again": "fedavg", "zero-shot": {}},
    },
}
CHOSEN = {"fedavg": {"chosen": {RATE: "2e-2"}}, "fipa": {"chosen": {RATE: 0.7}}}
"""As somebody writes it: neither value is one of the sweep's values, and there are no scores."""


@pytest.fixture
def write(tmp_path: Path, tiny_settings: Any) -> Callable[..., Path]:
    """write(seeds=[1]): a sweep file beside a tiny experiment."""

    def written(**changes: Any) -> Path:
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_settings("fedavg", rounds=1)))
        (tmp_path / "sweep-file.yaml").write_text(yaml.safe_dump(BASE | changes, sort_keys=False))
        return tmp_path / "sweep-file.yaml"

    return written


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., str]:
    """record(variants): `tuned=` with a record of tuned values."""

    def written(variants: Any = CHOSEN, name: str = "known.yaml", **others: Any) -> str:
        (tmp_path / name).write_text(yaml.safe_dump({"variants": variants} | others))
        return f"tuned={tmp_path / name}"

    return written


def rates(path: Path, *overrides: str) -> dict[str, float]:
    """The learning rate of each variant."""
    return {run.variant.name: run.experiment.local.learning_rate for run in load_sweep(path, overrides).runs}


def test_variants_take_the_values_of_the_record_and_nothing_is_tuned(write: Any, record: Any) -> None:
    """`again` takes FedAvg's value, and `zero-shot`, which the sweep does not tune, keeps its own."""
    path = write()
    own = rates(path)["zero-shot"]
    assert own not in (0.02, 0.7)
    assert rates(path, record()) == {"fedavg": 0.02, "fipa": 0.7, "again": 0.02, "zero-shot": own}
    plan = load_sweep(path, [record()])
    assert plan.tuning is None
    taken = [("fedavg", "2e-2"), ("fipa", "0.7"), ("again", "2e-2")]
    assert plan.notes == tuple(f"{name}: {RATE}={value} (tuned before)" for name, value in taken)
    assert plan.variants[0].overrides == ("method=fedavg", f"{RATE}=2e-2")


def test_picked_variants_need_only_their_own_values(write: Any, record: Any) -> None:
    only = record({"fedavg": {"chosen": {RATE: "1e-2"}}})
    assert rates(write(), only, "variants=again") == {"again": 0.01}
    assert load_sweep(write(), ["variants=zero-shot", record({}, name="empty.yaml")]).notes == ()
    with pytest.raises(ConfigError, match=r"known.yaml: has no chosen value for the variant 'fipa'.*; add it"):
        load_sweep(write(), [only])


def test_the_last_of_two_records_counts_as_with_other_overrides(write: Any, record: Any) -> None:
    other = record({name: {"chosen": {RATE: "1e-3"}} for name in CHOSEN}, name="other.yaml")
    assert rates(write(), record(), other)["fipa"] == 0.001


def test_each_task_has_a_record_of_its_own(write: Any, record: Any, tmp_path: Path) -> None:
    tasks = {"synthetic": [], "digits": ["data={max_train: 90}", "backbone={kind: cnn}"]}
    for task, rate in (("synthetic", "1e-3"), ("digits", "1e-2")):
        record({name: {"chosen": {RATE: rate}} for name in CHOSEN}, name=f"{task}.yaml")
    variants = {name: BASE["variants"][name] for name in CHOSEN}
    path = write(tasks=tasks, variants=variants, tune={"values": {RATE: ["1e-3", "1e-2"]}, "seed": 100})
    found = load_sweeps(path, [f"tuned={tmp_path}/{{task}}.yaml"])
    assert {task: {run.experiment.local.learning_rate for run in plan.runs} for task, plan in found.items()} == {
        "synthetic": {0.001}, "digits": {0.01},
    }  # fmt: skip


def test_the_record_of_a_sweep_gives_another_one_the_same_values(write: Any, tmp_path: Path, capsys: Any) -> None:
    """The record that a real sweep wrote, taken from Python and by the command: no tuning runs, no second record."""
    path = write(variants={"fedavg": []}, tune={"values": {RATE: ["1e-2", "1e+9"]}, "seed": 100})
    package.sweep(path, out=tmp_path / "first", progress=False)
    package.sweep(path, out=tmp_path / "second", progress=False, tuned=tmp_path / "first" / "tuned.yaml")
    runs = [package.open_sweep(tmp_path / name).runs["fedavg"][0] for name in ("first", "second")]
    assert runs[0].config == runs[1].config and runs[1].config["local"]["learning_rate"] == 0.01
    assert {each.name for each in (tmp_path / "second").iterdir()} == {".lock", "fedavg", "sweep.yaml"}
    command = ["sweep", str(path), f"tuned={tmp_path / 'first' / 'tuned.yaml'}", "--out", str(tmp_path / "second")]
    capsys.readouterr()
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [
        f"fedavg: {RATE}=1e-2 (tuned before)",
        f"1 run (1 variant, 1 seed), 1 finished before; in {tmp_path / 'second'}",
    ]
    assert read_yaml(tmp_path / "second" / "sweep.yaml")["variants"][0]["overrides"] == [f"{RATE}=1e-2"]


@pytest.mark.parametrize(
    ("variants", "others", "says"),
    [
        ([1], {}, "is not a record of tuned values; give the tuned.yaml of a sweep"),
        ({"fedavg": 1}, {}, "is not a record of tuned values"),
        ({"fedavg": {"tried": [1]}}, {}, "is not a record of tuned values"),
        ({}, {}, "has no chosen value for the variant 'fedavg'; add it, or leave out tuned="),
        ({"fedavg": {"chosen": None}}, {}, "has no chosen value for the variant 'fedavg'; add it"),
        ({"fedavk": {"chosen": {RATE: 1}}}, {}, "'fedavg' (did you mean 'fedavk'?); add it"),
        (CHOSEN | {"fipa": {"chosen": {}}}, {}, f"variant 'fipa' has values of nothing, and the sweep tunes {RATE}"),
        (CHOSEN | {"fipa": {"chosen": {"rounds": 1}}}, {}, f"'fipa' has values of rounds, and the sweep tunes {RATE}"),
        (CHOSEN | {"fipa": {"chosen": {RATE: [1]}}}, {}, "variant 'fipa': "),
        (CHOSEN | {"fipa": {"chosen": {RATE: -1}}}, {}, "variant 'fipa': "),
        (CHOSEN, {"seed": 0}, "its values were chosen with seed 0, which is also one of the sweep's `seeds`"),
    ],
)
def test_a_mistake_in_a_record_is_one_line_that_names_it(
    variants: Any, others: dict[str, Any], says: str, write: Any, record: Any
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_sweep(write(), [record(variants, **others)])
    assert says in str(caught.value) and "known.yaml: " in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_record_without_use_or_without_a_file_is_refused(write: Any, record: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tuned=.*known.yaml: has no effect, because this sweep tunes nothing"):
        load_sweep(write(tune=None), [record()])
    with pytest.raises(ConfigError, match=r"nowhere.yaml: cannot be read \(No such file or directory\)"):
        load_sweep(write(), [f"tuned={tmp_path / 'nowhere.yaml'}"])
    with pytest.raises(ConfigError, match="tuned: no such key"):
        load_sweep(tmp_path / "tiny.yaml", [record(), "rounds=1,2"])


def test_a_sweep_goes_on_in_a_folder_whose_record_has_no_scores(write: Any, record: Any, tmp_path: Path) -> None:
    """Such a record does not say which values failed, so all of them are tried."""
    record(name="tuned.yaml")
    tuning = load_sweep(write()).tuning
    assert tuning and failed_before(tmp_path, tuning) == set()
