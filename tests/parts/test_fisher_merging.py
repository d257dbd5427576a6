"""Fisher merging (E24): by hand, where it is FedAvg, and what a device measures after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fibec_ray.config.load import check
from fibec_ray.curvature.fisher import FisherScan
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.parts.aggregator.fisher_merging import FisherMerging
from fibec_ray.parts.aggregator.mean import Mean
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.tensors import Tensors, num_bytes, with_prefix
from fibec_ray.types import Broadcast, DeviceUpdate, RoundPlan

DELTAS = [[1.0, 2.0, -3.0], [5.0, -2.0, 0.5]]
SIZES = [1, 3]


def merged(*fishers: list[float], **settings: Any) -> list[float]:
    updates = [
        DeviceUpdate(k, SIZES[k], 1, {"w": torch.tensor(DELTAS[k])}, {"fisher/w": torch.tensor(fisher)})
        for k, fisher in enumerate(fishers)
    ]
    step, state = FisherMerging(**settings).combine({}, iter(updates))
    assert state == {} and step["w"].dtype == torch.float32
    return step["w"].tolist()


MEAN = [(1 * a + 3 * b) / 4 for a, b in zip(*DELTAS, strict=True)]


def test_it_is_the_formula_by_hand() -> None:
    """Entry 0: (1 * 6 * 1 + 3 * 2 * 5) / (6 + 6) = 3; entry 1: (9 * 2 - 3 * 1 * 2) / 12 = 1; entry 2: .5 alone."""
    assert merged([6.0, 9.0, 0.0], [2.0, 1.0, 4.0], eps=0) == [3, 1, 0.5]


def test_equal_fisher_information_is_fedavg() -> None:
    """E24, however large it is."""
    for scale in (1e-30, 1.0, 1e20):
        assert merged([1 * scale, 2 * scale, 3 * scale], [1 * scale, 2 * scale, 3 * scale]) == pytest.approx(MEAN)


def test_the_one_device_that_knows_an_entry_decides_it() -> None:
    """E24: one-hot information."""
    assert merged([1.0, 0.0, 1.0], [0.0, 1.0, 0.0]) == pytest.approx([1, -2, -3], rel=1e-6)
    assert merged([1.0, 0.0, 1.0], [0.0, 1.0, 0.0], eps=0) == [1, -2, -3]


@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_an_entry_that_nobody_knows_takes_the_mean(eps: float) -> None:
    """E24: F = 0 in one entry, or in all."""
    assert merged([1.0, 0.0, 1.0], [1.0, 0.0, 1.0], eps=eps)[1] == pytest.approx(MEAN[1])
    assert merged([0.0] * 3, [0.0] * 3, eps=eps) == pytest.approx(MEAN)


def test_a_large_eps_is_fedavg() -> None:
    assert merged([1.0, 0.0, 9.0], [0.0, 1.0, 2.0], eps=1e9) == pytest.approx(MEAN)


# --- what a device sends


def spec_of(tiny_settings: Any, folder: Path, **settings: Any) -> WorkerSpec:
    method = {"name": "merging", "aggregator": {"kind": "fisher_merging", **settings}}
    experiment = check(tiny_settings(method), "test")
    folder.mkdir()
    prepared = prepare(experiment, folder)
    return WorkerSpec(experiment.job(prepared.answers(experiment.task)), folder, cache_dir())


def test_a_device_sends_its_fisher_information_where_training_ended(tiny_settings: Any, tmp_path: Path) -> None:
    """Of all of its samples, here; as many bytes as the delta, and counted."""
    worker_spec = spec_of(tiny_settings, tmp_path / "run", max_samples=None, label="observed")
    worker = worker_spec.worker()
    update, report = worker.train(RoundPlan(0, 3, (2,), 0.01), 2, Broadcast(0, worker.initial))
    for name, value in worker.model.read().items():
        torch.testing.assert_close(value, worker.initial[name] + update.delta[name])
    shard, names = worker_spec.federation().train_shard(2), list(worker.initial)
    scan = FisherScan(worker.model, shard, worker.batches(2), names, torch.Generator())
    expected = with_prefix("fisher", scan.read("observed", "all").diagonal)
    assert update.extras.keys() == expected.keys() == {f"fisher/{name}" for name in names}
    for name, value in update.extras.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-9)
    assert report.bytes_up_extras == num_bytes(update.extras) == report.bytes_up_delta == num_bytes(update.delta)


def test_some_samples_cost_less_and_are_drawn_by_seed(tiny_settings: Any, tmp_path: Path) -> None:
    found: dict[str, tuple[Tensors, float]] = {}
    for name, most in (("few", 2), ("again", 2), ("all", None)):
        worker = spec_of(tiny_settings, tmp_path / name, max_samples=most).worker()
        update, report = worker.train(RoundPlan(0, 3, (2,), 0.01), 2, Broadcast(0, worker.initial))
        found[name] = (update.extras, report.flops)
    assert all(torch.equal(value, found["again"][0][name]) for name, value in found["few"][0].items())
    assert any(not torch.allclose(value, found["all"][0][name]) for name, value in found["few"][0].items())
    assert found["few"][1] < found["all"][1]


def test_a_normalised_one_has_trace_one(tiny_settings: Any, tmp_path: Path) -> None:
    sent = {}
    for normalise in (False, True):
        worker = spec_of(tiny_settings, tmp_path / str(normalise), normalise=normalise).worker()
        sent[normalise] = worker.train(RoundPlan(0, 3, (2,), 0.01), 2, Broadcast(0, worker.initial))[0].extras
    trace = sum(float(value.double().sum()) for value in sent[False].values())
    assert trace != pytest.approx(1)
    for name, value in sent[True].items():
        torch.testing.assert_close(value, sent[False][name] / trace)


def test_with_nothing_shared_nothing_is_measured(tiny_settings: Any, tmp_path: Path) -> None:
    worker = spec_of(tiny_settings, tmp_path / "run").worker()
    shard, batches = worker.data.train_shard(0), worker.batches(0)
    assert FisherMerging().extras_after(worker.model, shard, [], batches, torch.Generator()) == {}
    assert FisherMerging().combine({}, [DeviceUpdate(0, 1, 1, {})])[0] == Mean().combine({}, [])[0] == {}
