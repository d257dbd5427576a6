"""PLGU: a step uphill by each shared tensor, then plain training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import after_rounds

from fibec_ray.learning.device_round import DeviceRound
from fibec_ray.learning.planning import plan_round
from fibec_ray.tensors import digest, subtract
from fibec_ray.types import Broadcast

RADIUS = 0.05


def plgu(radius: float = RADIUS, **parts: Any) -> dict[str, Any]:
    return {"name": "plgu", "solver": {"kind": "plgu", "radius": radius}, **parts}


@pytest.mark.parametrize("sharing", ["all", "body"])
def test_a_device_moves_uphill_and_then_trains(sharing: str, tiny_settings: Any, tmp_path: Path) -> None:
    """w + rho g / |g|, tensor by tensor, with g by autograd on the whole model; then plain training, to 1e-3."""
    _, worker_spec, _ = after_rounds(0, tiny_settings(plgu(sharing=sharing)), tmp_path / "run")
    worker, plan = worker_spec.worker(), plan_round(worker_spec.job, 0)
    device, initial = plan.cohort[0], worker.initial
    shared = {name: value for name, value in initial.items() if sharing == "all" or not name.startswith("head.")}
    broadcast = Broadcast(0, shared)
    update, _ = worker.train(plan, device, broadcast)

    round_ = DeviceRound(worker, plan, device, broadcast)
    model, params = worker.model, worker.model.trainable
    model.train(False)
    with torch.enable_grad():
        losses = [model.forward(round_.shard.batch(rows)).losses.mean() for rows in round_.visible]
        gradients = torch.autograd.grad(torch.stack(losses).mean(), list(params.values()), allow_unused=True)
    moved = dict(initial)
    for name, gradient in zip(params, gradients, strict=True):
        if gradient is not None and name in shared:
            moved[name] = initial[name] + RADIUS * gradient / (gradient.norm() + 1e-7)
    distances = {name: float((moved[name] - initial[name]).norm()) for name in shared}
    assert all(value == pytest.approx(RADIUS, rel=5e-3) for value in distances.values() if value)
    assert sum(value > 0 for value in distances.values()) > len(shared) / 3  # A has no gradient while B is 0

    session = round_.session()
    found = session.gradient()
    for name, gradient in zip(params, gradients, strict=True):
        torch.testing.assert_close(found[name], torch.zeros_like(initial[name]) if gradient is None else gradient)
    session.load(moved)
    session.train()
    trained = subtract(model.read(list(shared)), shared)
    for name, value in trained.items():
        torch.testing.assert_close(update.delta[name], value, rtol=1e-3, atol=2e-5)


def test_a_radius_of_zero_is_fedavg(tiny_settings: Any, tmp_path: Path) -> None:
    still, _, _ = after_rounds(1, tiny_settings(plgu(0)), tmp_path / "plgu")
    plain, _, _ = after_rounds(1, tiny_settings("fedavg"), tmp_path / "fedavg")
    assert still.digest() == plain.digest()


def test_frozen_entries_do_not_move(tiny_settings: Any, tmp_path: Path) -> None:
    """RoLoRA trains B in the first round, so A stays as it was received."""
    method = plgu(peft={"kind": "lora", "take_turns": True})
    _, worker_spec, _ = after_rounds(0, tiny_settings(method), tmp_path / "run")
    worker, plan = worker_spec.worker(), plan_round(worker_spec.job, 0)
    device = plan.cohort[0]
    round_ = DeviceRound(worker, plan, device, Broadcast(0, dict(worker.initial)))
    still = set(worker.initial) - set(round_.moving)
    assert still
    worker.job.method.solver.solve(round_.session(), {})
    after = worker.model.read()
    assert digest({name: after[name] for name in still}) == digest({name: worker.initial[name] for name in still})
