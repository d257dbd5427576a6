"""FedRep: the head by itself, then the body by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import TINY_LLAMA, after_rounds
from device_states import stored

from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError
from fibec_ray.learning.device_round import DeviceRound
from fibec_ray.learning.planning import plan_round
from fibec_ray.learning.store import StateStore
from fibec_ray.tensors import digest, drop, select, subtract
from fibec_ray.types import Broadcast

DECODER = {"backbone": {"config": TINY_LLAMA, "head": "causal_lm"}, "data": {"max_length": 24}}


def fedrep(head_epochs: int = 2, **parts: Any) -> dict[str, Any]:
    return {"name": "fedrep", "sharing": "body", "solver": {"kind": "fedrep", "head_epochs": head_epochs}, **parts}


def test_first_the_head_on_the_received_body_then_the_body_with_that_head(tiny_settings: Any, tmp_path: Path) -> None:
    """Bit for bit what two trainings give that move one of the two each; no batch order is used twice."""
    _, worker_spec, _ = after_rounds(0, tiny_settings(fedrep(2)), tmp_path / "run")
    worker = worker_spec.worker()
    body = select(worker.initial, [name for name in worker.initial if not name.startswith("head.")])
    plan, broadcast = plan_round(worker_spec.job, 0), Broadcast(0, body)
    device = plan.cohort[0]
    update, _ = worker.train(plan, device, broadcast)
    personal = stored(StateStore(worker_spec.state_dir), device, before=1).personal

    session = DeviceRound(worker, plan, device, broadcast).session()
    session.train(moves=["head.weight", "head.bias"], epochs=2)
    after_head = worker.model.read()
    assert digest(select(after_head, body)) == digest(body)
    assert digest(drop(after_head, body)) == digest(personal) != digest(drop(worker.initial, body))
    session.train(moves=list(body), first_epoch=2, epochs=1)
    after_body = worker.model.read()
    assert digest(drop(after_body, body)) == digest(personal)
    assert digest(subtract(select(after_body, body), body)) == digest(update.delta)


def test_fedalt_trains_the_shared_tensors_first_and_each_as_long(tiny_settings: Any, tmp_path: Path) -> None:
    """Bit for bit two trainings of local.epochs each, in a co-author's order."""
    _, worker_spec, _ = after_rounds(0, tiny_settings("fedalt", local={"epochs": 2}), tmp_path / "run")
    worker = worker_spec.worker()
    personal = [name for name in worker.initial if name.startswith("head.") or ".layer.2." in name]
    shared = drop(worker.initial, personal)
    plan, broadcast = plan_round(worker_spec.job, 0), Broadcast(0, shared)
    device = plan.cohort[0]
    update, report = worker.train(plan, device, broadcast)
    kept = stored(StateStore(worker_spec.state_dir), device, before=1).personal

    session = DeviceRound(worker, plan, device, broadcast).session()
    session.train(moves=list(shared), epochs=2)
    between = worker.model.read()
    assert digest(drop(between, shared)) == digest(select(worker.initial, personal))
    assert digest(subtract(select(between, shared), shared)) == digest(update.delta)
    session.train(moves=personal, first_epoch=2, epochs=2)
    assert digest(drop(worker.model.read(), shared)) == digest(kept)
    assert report.num_steps == 2 * len(worker.batches(device))


def test_the_log_counts_the_body_s_steps_and_all_of_the_work(tiny_settings: Any, tmp_path: Path) -> None:
    """Two epochs of the head and one of the body are three times FedPer's work. `max_steps` bounds each of the two."""
    for max_steps, least, most in ((None, 3, 3), (1, 1, 3)):
        local = {"local": {"max_steps": max_steps}}
        _, _, reports = after_rounds(1, tiny_settings(fedrep(2), **local), tmp_path / f"fedrep-{max_steps}")
        _, _, expected = after_rounds(1, tiny_settings("fedper", **local), tmp_path / f"fedper-{max_steps}")
        for one, other in zip(reports, expected, strict=True):
            assert one.num_steps == other.num_steps
            assert least * other.flops <= one.flops * (1 + 1e-9) <= most * other.flops * (1 + 2e-9)


def test_scaffold_s_variates_are_of_the_body_s_steps(tiny_settings: Any, tmp_path: Path) -> None:
    """c_k = -delta / (s eta) in round 0, with s the steps that moved the body."""
    local = {"optimizer": "sgd", "learning_rate": 0.2}
    method = fedrep(2, objective="scaffold", aggregator={"kind": "mean", "weights": "uniform"})
    _, worker_spec, _ = after_rounds(0, tiny_settings(method, local=local), tmp_path / "run")
    worker, job = worker_spec.worker(), worker_spec.job
    body = select(worker.initial, [name for name in worker.initial if not name.startswith("head.")])
    control = job.method.objective.absorb(body, {}, (), 1)
    update, report = worker.train(plan_round(job, 0), 0, Broadcast(0, body, control))
    steps = len(worker.batches(0))
    assert update.num_steps == report.num_steps == steps
    for name, value in update.delta.items():
        assert digest({"": update.extras[f"control/{name}"]}) == digest({"": -(control[name] + value / (steps * 0.2))})


def test_a_method_without_a_head_is_refused(tiny_settings: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="method: solver 'fedrep' needs personal .* share less, such as .* body"):
        check(tiny_settings(fedrep(sharing="all")), "test")
    with pytest.raises(ConfigError, match="method: solver 'fedrep' needs shared tensors, but sharing 'none'"):
        check(tiny_settings(fedrep(sharing="none")), "test")
    with pytest.raises(
        ConfigError, match="method: solver 'fedrep' trains personal tensors, but mask 'random_neurons' freezes"
    ):
        check(tiny_settings(fedrep(mask={"kind": "random_neurons", "ratio": 0})), "test")
    with pytest.raises(ConfigError, match=r"method.solver: fedrep .*a verbaliser has no head.*last_blocks=1"):
        after_rounds(0, tiny_settings(fedrep(), **DECODER), tmp_path / "run")


def test_with_a_verbaliser_the_last_blocks_are_the_head(tiny_settings: Any, tmp_path: Path) -> None:
    method = fedrep(sharing={"kind": "body", "last_blocks": 1})
    _, worker_spec, reports = after_rounds(1, tiny_settings(method, **DECODER), tmp_path / "run")
    for report in reports:
        personal = stored(StateStore(worker_spec.state_dir), report.device, before=1).personal
        assert personal and all(".layers.2." in name for name in personal)
