"""Centralised training, the anchor: a walk through pooled data, and what it shares with a federation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fibec_ray.config.load import check
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.batches import steps_of, walk
from fibec_ray.learning.planning import plan_round
from fibec_ray.runs.simulation import cache_dir, prepare, simulate


def test_a_round_has_a_cohorts_share_of_the_batches() -> None:
    """2 of 10 devices: 6 of 30 batches; two epochs of 3 of 4 devices on 5 batches: 7.5, so 8 and 7 in turn."""
    assert [steps_of(t, 30, 1, 2, 10) for t in range(3)] == [range(6), range(6, 12), range(12, 18)]
    assert [steps_of(t, 5, 2, 3, 4) for t in range(3)] == [range(8), range(8, 15), range(15, 23)]
    assert [steps_of(t, 7, 3, 1, 1) for t in range(2)] == [range(21), range(21, 42)]


@pytest.mark.parametrize("num_batches", [1, 7, 30])
@pytest.mark.parametrize(("cohort_size", "num_devices"), [(1, 3), (5, 20), (7, 9), (1, 1)])
def test_rounds_go_on_where_the_last_one_ended_and_none_is_empty(
    num_batches: int, cohort_size: int, num_devices: int
) -> None:
    steps = [steps_of(t, num_batches, 2, cohort_size, num_devices) for t in range(9)]
    exact = max(1.0, 2 * num_batches * cohort_size / num_devices)
    assert all(before.stop == after.start for before, after in zip(steps, steps[1:], strict=False))
    assert steps[0].start == 0 and all(len(found) >= 1 for found in steps)
    assert all(abs(found.stop - (t + 1) * exact) <= 0.5 for t, found in enumerate(steps))


def test_a_walk_goes_through_all_batches_before_it_starts_again() -> None:
    orders = {0: [2, 0, 1], 1: [1, 2, 0], 2: [0, 1, 2]}
    assert walk(range(0, 2), 3, orders.__getitem__) == [2, 0]
    assert walk(range(2, 7), 3, orders.__getitem__) == [1, 1, 2, 0, 0]


def run_of(method: str, tiny_settings: Any, folder: Path, **settings: Any) -> Any:
    return simulate(check(tiny_settings(method, **settings), "test"), folder / method)


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_federation_of_one_device_is_centralised_training(epochs: int, tiny_settings: Any, tmp_path: Path) -> None:
    """E13, bit for bit; only nothing is sent, which takes no time."""
    one = {"num_devices": 1, "cohort_size": 1, "local": {"epochs": epochs}}
    pooled, fedavg = (run_of(method, tiny_settings, tmp_path, **one) for method in ("centralised", "fedavg"))
    assert pooled.adapter_digest == fedavg.adapter_digest
    differ = {"wall_time_s", "sim_time_s", "bytes_up", "bytes_down", "bytes_total", "energy_j", "energy_total_j"}
    for left, right in zip(pooled.rows, fedavg.rows, strict=True):
        assert {key for key in left if left[key] != right[key]} <= differ
    assert pooled.rows[-1]["bytes_total"] == 0 < fedavg.rows[-1]["bytes_total"]
    assert 0 < pooled.rows[-1]["sim_time_s"] < fedavg.rows[-1]["sim_time_s"]


def test_it_visits_as_many_samples_as_the_federation_and_sees_all(tiny_settings: Any, tmp_path: Path) -> None:
    """72 samples in 18 batches, 3 of 6 devices, alike: 36 in a round; two rounds see each batch once."""
    settings = {"partition": {"kind": "iid"}, "rounds": 4}
    pooled, fedavg = (run_of(method, tiny_settings, tmp_path, **settings) for method in ("centralised", "fedavg"))
    visits = [[row["num_samples"] for row in run.rows[1:]] for run in (pooled, fedavg)]
    assert visits[0] == visits[1] == [36] * 4
    assert [row["data_fraction"] for row in pooled.rows[1:]] == [0.5] * 4
    assert all(row["num_devices"] == 1 for row in pooled.rows[1:])


def test_over_a_run_visits_agree_to_a_batch_where_shards_differ(tiny_settings: Any, tmp_path: Path) -> None:
    """All 5 devices of unequal shards each round: 71 samples, the last batch short, whichever round it falls into."""
    settings = {"num_devices": 5, "cohort_size": 5, "rounds": 3, "data": {"synthetic": {"num_train": 71}}}
    pooled, fedavg = (run_of(method, tiny_settings, tmp_path, **settings) for method in ("centralised", "fedavg"))
    assert pooled.rows[-1]["num_samples_total"] == fedavg.rows[-1]["num_samples_total"] == 3 * 71


def test_rounds_train_on_different_batches_each_time(tiny_settings: Any, tmp_path: Path) -> None:
    worker_spec = spec_of(tiny_settings, tmp_path / "run")
    worker = worker_spec.worker()
    batches = len(worker.batches(0))
    walked = [worker.walk(batches, round_, 0) for round_ in range(4)]
    assert sorted(walked[0] + walked[1]) == sorted(walked[2] + walked[3]) == list(range(18))
    assert walked[0] != walked[2]


def spec_of(tiny_settings: Any, folder: Path) -> WorkerSpec:
    folder.mkdir()
    experiment = check(tiny_settings("centralised"), "test")
    prepared = prepare(experiment, folder)
    return WorkerSpec(experiment.job(prepared.answers(experiment.task)), folder, cache_dir())


def test_anchors_are_those_of_the_federation_and_personal_is_global(tiny_settings: Any, tmp_path: Path) -> None:
    """The partition deals the rows that it would deal; one device then holds all of them."""
    pooled, fedavg = (run_of(method, tiny_settings, tmp_path) for method in ("centralised", "fedavg"))
    assert pooled.prepared == fedavg.prepared and pooled.prepared.heterogeneity["smallest_shard"] < 72
    last = pooled.rows[-1]
    assert last["personal_accuracy"] == last["global_accuracy"] == last["personal_accuracy_trained"]
    assert last["personal_loss"] == last["global_loss"]


def test_one_device_holds_every_row(tiny_settings: Any, tmp_path: Path) -> None:
    worker_spec = spec_of(tiny_settings, tmp_path / "run")
    federation = worker_spec.federation()
    assert worker_spec.job.num_devices == federation.num_devices == 1
    assert np.array_equal(federation.train_rows[0], np.arange(72))
    assert np.array_equal(federation.test_rows[0], np.arange(24))
    fleet = LocalFleet(worker_spec)
    assert not fleet.setup().reports and plan_round(worker_spec.job, 0).cohort == (0,)


def test_it_sends_and_keeps_nothing(tiny_settings: Any) -> None:
    method = check(tiny_settings("centralised"), "test").method
    assert (method.sends, method.keeps) == ("nothing", "")
