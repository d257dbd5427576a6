"""What holds for every kind of task: it is planned, trains, is killed and resumed, and is computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kinds import CASES, KINDS, READ_FROM_TABLES
from runs.interrupted import Plug, interrupted, result

from fibec_ray.config.load import check, load_saved
from fibec_ray.errors import DataError
from fibec_ray.preflight.check import foresee
from fibec_ray.roundlog.reader import read_rounds
from fibec_ray.runs.replay import replay
from fibec_ray.runs.resume import resume
from fibec_ray.runs.simulation import cache_dir, prepare, simulate
from fibec_ray.runs.verify import verify
from fibec_ray.tasks import TASKS

METHODS = ("fedavg", "fibecfed", "fipa")


def test_no_kind_is_left_out() -> None:
    assert KINDS.keys() | READ_FROM_TABLES.keys() == TASKS.keys()


@pytest.mark.parametrize("kind", CASES)
def test_a_run_takes_what_was_planned_and_does_the_same_again(kind: str, tmp_path: Path) -> None:
    experiment = check(CASES[kind]("fibecfed", rounds=3), "test")
    outlook = foresee(experiment, prepare, tmp_path / "plan", cache_dir())
    run = simulate(experiment, tmp_path / "run")
    rows = read_rounds(run.folder).to_pylist()
    assert outlook.traffic.total == rows[-1]["bytes_total"]
    flops = outlook.work.setup_flops + sum(outlook.work.rounds_flops)
    assert flops == pytest.approx(sum(row["flops"] for row in rows), rel=0.25)
    assert rows[-1]["personal_loss"] is not None
    assert load_saved(run.folder / "config.yaml") == experiment
    assert verify(run.folder, num_rounds=2).differences == []
    device = run.rows and next(iter(read_devices_of(run.folder)))
    assert replay(run.folder, 2, device).differences == []


@pytest.mark.parametrize("kind", CASES)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(kind: str, tmp_path: Path) -> None:
    settings = CASES[kind]("fibecfed", rounds=3)
    calm = simulate(check(settings, "test"), tmp_path / "calm")
    half = interrupted(settings, tmp_path / "half", settings["cohort_size"] + 1)
    assert result(resume(half, (), Plug()), half) == result(calm, calm.folder)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", CASES)
def test_a_method_trains_on_it(kind: str, method: str, tmp_path: Path) -> None:
    run = simulate(check(CASES[kind](method, rounds=2), "test"), tmp_path / "run")
    assert run.rows[-1]["train_loss"] is not None and run.rows[-1]["personal_loss"] is not None


def read_devices_of(folder: Path) -> list[int]:
    """Devices of the last round."""
    from fibec_ray.roundlog.reader import read_devices

    rows = read_devices(folder).to_pylist()
    last = max(row["round"] for row in rows)
    return [row["device"] for row in rows if row["round"] == last]


def test_every_kind_lists_its_metrics() -> None:
    """A base class with the general field would hide those of another base."""
    for kind, cls in TASKS.items():
        assert cls.model_fields["metric"].annotation is not str, kind


@pytest.mark.parametrize("odd", [None, float("nan"), 3, {"a": "b"}, [], [None], (["a"], ["b", "c"])])
@pytest.mark.parametrize("kind", CASES)
def test_an_input_that_a_model_cannot_read_is_one_error(kind: str, odd: Any) -> None:
    """Not a traceback, and never a prediction for something else, such as the keys of a mapping."""
    task = check(CASES[kind](), "test").task
    with pytest.raises(DataError) as caught:
        task.rows_to_predict([odd], (2, 3, 4))
    assert "\n" not in str(caught.value)
