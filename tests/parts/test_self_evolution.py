"""SE: high losses count less, as with labels that are smoothed by the model's own prediction."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import after_rounds
from torch.nn import functional as F

from fibec_ray.learning.device_round import DeviceRound
from fibec_ray.learning.local_update import Terms
from fibec_ray.learning.planning import plan_round
from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.objective.self_evolution import SelfEvolution
from fibec_ray.types import Broadcast


@pytest.mark.parametrize("loss_of", ["batch", "sample"])
def test_the_gradient_is_that_of_smoothed_labels(loss_of: str) -> None:
    """Cross-entropy with the label (1 - .3) y + .3 p of samples above the threshold, written out."""
    rng = torch.Generator().manual_seed(0)
    scores = (3 * torch.randn(6, 4, generator=rng)).requires_grad_()
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    losses = F.cross_entropy(scores, labels, reduction="none")
    threshold = float(losses.detach().mean()) - 0.1
    high = losses.detach() > threshold if loss_of == "sample" else torch.ones(6, dtype=torch.bool)
    assert high.any() and (loss_of == "batch" or not high.all())
    true, own = F.one_hot(labels, 4).float(), scores.detach().softmax(1)
    smoothed = torch.where(high[:, None], 0.7 * true + 0.3 * own, true)
    (expected,) = torch.autograd.grad(-(smoothed * scores.log_softmax(1)).sum(1).mean(), scores, retain_graph=True)
    se = SelfEvolution(threshold=threshold, share=0.3, loss_of=loss_of)  # type: ignore[arg-type]
    (found,) = torch.autograd.grad(Terms(se).mean_of(losses), scores, retain_graph=True)
    torch.testing.assert_close(found, expected)
    (plain,) = torch.autograd.grad(losses.mean(), scores, retain_graph=True)
    for off in (SelfEvolution(threshold=99.0), SelfEvolution(threshold=0.0, share=0.0), Objective()):
        (unchanged,) = torch.autograd.grad(Terms(off).mean_of(losses), scores, retain_graph=True)
        assert torch.equal(unchanged, plain)


def test_a_loss_of_exactly_the_threshold_is_plain() -> None:
    assert SelfEvolution(loss_of="sample").weigh(torch.tensor([1.9, 2.0, 2.1])).tolist() == [1.0, 1.0, 0.5]
    assert SelfEvolution().weigh(torch.tensor([1.9, 2.0, 2.1])).tolist() == [1.0] * 3  # the mean is 2
    assert SelfEvolution().weigh(torch.tensor([1.0, 9.0])).tolist() == [0.5] * 2


@pytest.mark.parametrize("loss_of", ["batch", pytest.param("sample", marks=pytest.mark.slow)])
def test_lanes_weigh_each_device_by_its_own_losses(loss_of: str, tiny_settings: Any, tmp_path: Path) -> None:
    """Devices on three lanes and one by one; without clipping, so that the length of a step shows the weights."""
    objective = {"kind": "self_evolution", "threshold": 1.78, "loss_of": loss_of}
    settings = {"local": {"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 5, "clip": None}}
    found = []
    for lanes in (1, 3):
        method = {"name": "x", "objective": objective}
        fleet, _, reports = after_rounds(
            1, tiny_settings(method, fleet={"kind": "local", "lanes": lanes}, **settings), tmp_path / str(lanes)
        )
        found.append((fleet.adapter(), [report.train_loss for report in reports]))
    plain, _, _ = after_rounds(1, tiny_settings("fedavg", **settings), tmp_path / "plain")
    (alone, losses), (together, _) = found
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-4, atol=1e-6)
    assert any(not torch.allclose(value, alone[name], atol=1e-5) for name, value in plain.adapter().items())
    assert losses == pytest.approx(found[1][1], rel=1e-5)


def test_the_log_has_the_plain_loss_of_the_first_step(tiny_settings: Any, tmp_path: Path) -> None:
    """With one step each, the loss is that of the initial model."""
    found = []
    for objective in ("plain", {"kind": "self_evolution", "threshold": 0.0}):
        settings = tiny_settings({"name": "x", "objective": objective}, local={"max_steps": 1})
        _, worker_spec, _ = after_rounds(0, settings, tmp_path / str(len(found)))
        worker, plan = worker_spec.worker(), plan_round(worker_spec.job, 0)
        session = DeviceRound(worker, plan, plan.cohort[0], Broadcast(0, dict(worker.initial))).session()
        session.train()
        found.append(session.trained.mean_loss)
    assert found[0] == found[1]
