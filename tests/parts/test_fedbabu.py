"""FedBABU (E23) and FedAvg with fine-tuning: what tuning before an evaluation does, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY_LLAMA, after_rounds
from device_states import stored

from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError
from fibec_ray.learning.planning import plan_round
from fibec_ray.learning.store import StateStore
from fibec_ray.runs.simulation import simulate
from fibec_ray.tensors import digest, drop
from fibec_ray.types import EvaluationResult


def tuned(**solver: Any) -> dict[str, Any]:
    return {"name": "tuned", "solver": {"kind": "fine_tune", **solver}}


def fingerprint(result: EvaluationResult) -> str:
    return digest({str(device): own.losses for device, own in result.personal.items()} | {"": result.shared.losses})


def test_the_head_is_bit_identical_until_evaluation(tiny_settings: Any, tmp_path: Path) -> None:
    """E23: on all devices and on the server; and evaluation, which tunes it, leaves it so."""
    settings = tiny_settings("fedbabu", cohort_size=6, local={"weight_decay": 0.1})
    fleet, worker_spec, reports = after_rounds(2, settings, tmp_path / "run")
    initial, store = fleet._worker.initial, StateStore(worker_spec.state_dir)
    head = drop(initial, fleet._opened.shared_names)
    assert set(head) == {"head.weight", "head.bias"} and all(report.kept_fraction == 0 for report in reports)
    for _ in range(2):
        assert all(digest(stored(store, device, before=9).personal) == digest(head) for device in range(6))
        assert digest({name: fleet.adapter()[name] for name in head}) == digest(head)
        fleet.evaluate(1)


def test_the_global_model_is_scored_with_the_head_that_all_bodies_were_trained_with(
    tiny_settings: Any, tmp_path: Path
) -> None:
    """Unlike FedPer's, which has no head that any body knows."""
    run = simulate(check(tiny_settings("fedbabu", rounds=1), "test"), tmp_path / "fedbabu")
    assert run.rows[-1]["global_loss"] is not None
    assert run.rows[-1]["personal_loss"] < run.rows[-1]["global_loss"]
    run = simulate(check(tiny_settings("fedper", rounds=1), "test"), tmp_path / "fedper")
    assert run.rows[-1]["global_loss"] is None


def test_tuning_moves_the_personal_tensors_or_all(tiny_settings: Any, tmp_path: Path) -> None:
    """Before any round every device is tuned from the same values, on its own data."""
    for tensors, names in (("personal", {"head.weight", "head.bias"}), ("all", None)):
        method = tuned(tensors=tensors) | {"sharing": "body"}
        fleet, worker_spec, _ = after_rounds(0, tiny_settings(method), tmp_path / tensors)
        worker, found = fleet._worker, set()
        broadcast = fleet._server.broadcast(0)
        for device in range(6):
            worker.model.load(worker.initial)
            worker_spec.job.method.solver.tune(worker.tuning(device, broadcast, worker.initial))
            after = worker.model.read()
            moved = {name for name, value in after.items() if not torch.equal(value, worker.initial[name])}
            assert moved == (names or set(after))
            found.add(digest(after))
        assert len(found) == 6


def test_training_is_fedavg_s_and_evaluation_can_be_had_again(tiny_settings: Any, tmp_path: Path) -> None:
    """Tuning belongs to (seed, device, round): twice the same, another in the next round; nothing of it is stored."""
    settings = tiny_settings(tuned(epochs=2), backbone={"dropout": True})
    fleet, worker_spec, reports = after_rounds(2, settings, tmp_path / "tuned")
    plain, _, expected = after_rounds(2, tiny_settings("fedavg", backbone={"dropout": True}), tmp_path / "fedavg")
    before = fleet.evaluate(1)
    assert fingerprint(fleet.evaluate(1)) == fingerprint(before) != fingerprint(fleet.evaluate(2))
    assert digest(fleet.adapter()) == digest(plain.adapter())
    assert [report.flops for report in reports] == [report.flops for report in expected]
    assert torch.equal(before.shared.losses, plain.evaluate(1).shared.losses)
    fleet.run_round(plan_round(worker_spec.job, 2))
    plain.run_round(plan_round(worker_spec.job, 2))
    assert digest(fleet.adapter()) == digest(plain.adapter())


def test_every_device_is_tuned_drawn_or_not(tiny_settings: Any, tmp_path: Path) -> None:
    """Its training loss falls below the global model's, and so do its test predictions differ."""
    fleet, worker_spec, _ = after_rounds(1, tiny_settings(tuned(epochs=3)), tmp_path / "run")
    result, federation = fleet.evaluate(0), worker_spec.federation()
    for device, own in result.personal.items():
        rows = torch.from_numpy(federation.test_rows[device].copy())
        assert len(own.losses) == len(rows)
        assert not len(rows) or not torch.allclose(own.losses, result.shared.losses[rows], atol=1e-4)


def test_the_rate_is_a_factor_that_does_not_decay(tiny_settings: Any, tmp_path: Path) -> None:
    """In the last of three rounds, with one step of plain SGD on each batch: half the rate, half the first step."""
    distances = []
    for rate in (1.0, 0.5):
        local = {"optimizer": "sgd", "weight_decay": 0.0, "learning_rate": 0.1, "max_steps": 1, "clip": None}
        fleet, worker_spec, _ = after_rounds(0, tiny_settings(tuned(rate=rate), local=local), tmp_path / str(rate))
        worker = fleet._worker
        worker.model.load(worker.initial)
        worker_spec.job.method.solver.tune(worker.tuning(0, fleet._server.broadcast(3), worker.initial))
        distances.append({name: value - worker.initial[name] for name, value in worker.model.read().items()})
    for name, value in distances[0].items():
        torch.testing.assert_close(value / 2, distances[1][name], rtol=1e-3, atol=1e-7)
    assert distances[0]["head.weight"].abs().max() > 1e-3


def test_tuning_a_head_that_is_not_there_is_refused(tiny_settings: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method: solver 'fine_tune' needs personal .* sharing 'all' leaves none"):
        check(tiny_settings(tuned(tensors="personal")), "test")
    decoder = {"backbone": {"config": TINY_LLAMA, "head": "causal_lm"}, "data": {"max_length": 24}}
    with pytest.raises(ConfigError, match=r"method.solver: fine_tune .* method.sharing.last_blocks=1"):
        after_rounds(0, tiny_settings("fedbabu", **decoder), tmp_path / "run")
