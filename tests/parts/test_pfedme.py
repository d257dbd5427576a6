"""pFedMe (E21): the shared model follows an own one that stays near it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import after_rounds
from device_states import stored

from fibec_ray.learning.planning import plan_round
from fibec_ray.learning.store import StateStore
from fibec_ray.parts.objective.proximal import squared_distance
from fibec_ray.tensors import Tensors, add, digest, drop, select
from fibec_ray.types import Broadcast


def pfedme(**solver: Any) -> dict[str, Any]:
    return {"name": "pfedme", "solver": {"kind": "pfedme", **solver}}


def one_round(method: dict[str, Any], settings: Any, folder: Path, **changes: Any) -> tuple[Tensors, Tensors, Tensors]:
    """Of a device in round 0: the received values, w and theta_k afterwards."""
    _, worker_spec, _ = after_rounds(0, settings(method, **changes), folder)
    worker = worker_spec.worker()
    update, _ = worker.train(plan_round(worker_spec.job, 0), 0, Broadcast(0, worker.initial))
    own = dict(stored(StateStore(worker_spec.state_dir), 0, before=1).memory["solver"])
    return worker.initial, add(worker.initial, update.delta), own


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_strong_pull_leaves_theta_at_w(optimizer: str, tiny_settings: Any, tmp_path: Path) -> None:
    """E21: the stronger the nearer, whatever the optimiser; and w goes nowhere without theta."""
    local, distances = {"optimizer": optimizer, "learning_rate": 0.05}, []
    for strength in (0.0, 1e2, 1e4, 1e7):
        received, w, theta = one_round(pfedme(strength=strength), tiny_settings, tmp_path / str(strength), local=local)
        distances.append((float(squared_distance(theta, w)) ** 0.5, float(squared_distance(w, received)) ** 0.5))
    for before, after in itertools.pairwise(distances):
        assert before[0] > after[0] and before[1] > after[1]
    assert distances[-1][0] < 1e-4 < 1e-2 < distances[0][0] and distances[-1][1] < 1e-4


def test_following_all_the_way_without_a_pull_is_fedavg(tiny_settings: Any, tmp_path: Path) -> None:
    """w = theta after each batch, one step each: bit for bit, with dropout."""
    dropout = {"backbone": {"dropout": True}}
    method = pfedme(strength=0.0, inner_steps=1, follow=1.0)
    fleet, _, reports = after_rounds(3, tiny_settings(method, **dropout), tmp_path / "pfedme")
    plain, _, expected = after_rounds(3, tiny_settings("fedavg", **dropout), tmp_path / "fedavg")
    assert digest(fleet.adapter()) == digest(plain.adapter())
    assert [(r.train_loss, r.num_steps, r.flops) for r in reports] == [
        (r.train_loss, r.num_steps, r.flops) for r in expected
    ]


def test_the_log_counts_steps_of_w_and_all_of_the_work(tiny_settings: Any, tmp_path: Path) -> None:
    """Each costs K passes; `max_steps` is about them too."""
    for max_steps in (None, 2):
        local = {"local": {"max_steps": max_steps}}
        _, _, reports = after_rounds(1, tiny_settings(pfedme(inner_steps=3), **local), tmp_path / f"pfedme-{max_steps}")
        _, _, expected = after_rounds(1, tiny_settings("fedavg", **local), tmp_path / f"fedavg-{max_steps}")
        for one, other in zip(reports, expected, strict=True):
            assert (one.num_steps, one.num_samples_seen) == (other.num_steps, other.num_samples_seen)
            assert one.flops == pytest.approx(3 * other.flops) and one.bytes_up == other.bytes_up


def test_w_by_the_paper_s_two_lines(tiny_settings: Any, tmp_path: Path) -> None:
    """Written out for a device, with plain SGD: K steps of theta, its pull, then w goes its share of the way to it."""
    sgd = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.0, "clip": None}
    method = pfedme(strength=4.0, inner_steps=3, follow=0.25)
    received, w, theta = one_round(method, tiny_settings, tmp_path / "run", local=sgd)
    _, worker_spec, _ = after_rounds(0, tiny_settings(method, local=sgd), tmp_path / "again")
    worker, shard = worker_spec.worker(), worker_spec.federation().train_shard(0)
    params = worker.model.trainable
    centre = {name: value.clone() for name, value in received.items()}
    for rows in worker.epochs(worker.batches(0), 0, 0):
        for _ in range(3):
            loss = worker.model.forward(shard.batch(rows)).losses.mean()
            for param, grad in zip(params.values(), torch.autograd.grad(loss, list(params.values())), strict=True):
                param.data.sub_(0.1 * grad)
            for name, param in params.items():
                param.data.copy_((param.data + 0.1 * 4.0 * centre[name]) / (1 + 0.1 * 4.0))
        centre = {name: value + 0.25 * (params[name].detach() - value) for name, value in centre.items()}
    for name, value in centre.items():
        torch.testing.assert_close(w[name], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(theta[name], params[name].detach(), rtol=1e-4, atol=1e-6)


def test_a_personal_evaluation_scores_theta_and_a_global_one_w(tiny_settings: Any, tmp_path: Path) -> None:
    """Devices that were never drawn have w."""
    settings = tiny_settings(pfedme(follow=0.5), local={"learning_rate": 0.05})
    fleet, worker_spec, reports = after_rounds(1, settings, tmp_path / "run")
    result, federation, drawn = fleet.evaluate(0), worker_spec.federation(), {report.device for report in reports}
    for device, own in result.personal.items():
        rows = torch.from_numpy(federation.test_rows[device].copy())
        same = torch.allclose(own.losses, result.shared.losses[rows], atol=1e-6)
        assert same == (device not in drawn or not len(rows))


def test_personal_layers_train_with_theta(tiny_settings: Any, tmp_path: Path) -> None:
    """A personal head has no w: it stays where theta's training left it."""
    _, worker_spec, reports = after_rounds(1, tiny_settings({**pfedme(), "sharing": "body"}), tmp_path / "run")
    for report in reports:
        state = stored(StateStore(worker_spec.state_dir), report.device, before=1)
        own = dict(state.memory["solver"])
        assert digest(select(own, state.personal)) == digest(state.personal) and len(drop(own, state.personal)) > 0


def test_the_server_s_share_is_another_aggregator_s_rate(tiny_settings: Any, tmp_path: Path) -> None:
    """w <- (1 - b) w + b mean: momentum with beta 0 and rate b."""
    steps = []
    for rate in (1.0, 0.5):
        method = pfedme() | {
            "aggregator": {"kind": "momentum", "beta": 0.0, "rate": rate, "of": {"weights": "uniform"}}
        }
        fleet, _, _ = after_rounds(1, tiny_settings(method), tmp_path / str(rate))
        steps.append({name: value - fleet._worker.initial[name] for name, value in fleet.adapter().items()})
    for name, value in steps[0].items():
        torch.testing.assert_close(value / 2, steps[1][name], rtol=1e-3, atol=1e-7)
