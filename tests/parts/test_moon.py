"""MOON (E21): the contrastive term by hand, and over whole rounds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import after_rounds
from device_states import stored

from fibec_ray.config.load import check
from fibec_ray.errors import ConfigError
from fibec_ray.learning.store import StateStore
from fibec_ray.parts.objective.moon import Moon
from fibec_ray.tensors import digest, drop

Z, OTHER = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])


def moon(mu: float, **parts: Any) -> dict[str, Any]:
    return {"name": "moon", "objective": {"kind": "moon", "mu": mu}, **parts}


def test_the_term_by_hand() -> None:
    """cos = 1 with the received model's, 0 with the last own one's, tau = 1/2: -log(e^2 / (e^2 + 1)); else the reverse.

    mu = 3, mean over the batch. Lengths do not count.
    """
    near, far = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    for features, received, last, expected in ((Z, Z, OTHER, near), (Z, OTHER, Z, far), (5 * Z, 2 * Z, OTHER, near)):
        assert float(Moon(mu=3.0).feature_penalty(features, [received, last])) == pytest.approx(3 * expected)
    both = torch.cat([Z, Z]), [torch.cat([Z, OTHER]), torch.cat([OTHER, Z])]
    assert float(Moon(mu=3.0).feature_penalty(*both)) == pytest.approx(3 * (near + far) / 2)
    assert float(Moon(mu=1.0, tau=1.0).feature_penalty(Z, [Z, OTHER])) == pytest.approx(math.log(1 + math.exp(-1)))


def test_where_all_three_agree_it_is_log_2_and_pulls_nowhere() -> None:
    """E21."""
    features = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    value = Moon(mu=1.0).feature_penalty(features, [features.detach()] * 2)
    value.backward()
    assert value.item() == pytest.approx(math.log(2))
    assert features.grad is not None and features.grad.abs().max() < 1e-15


def test_its_gradient_moves_features_towards_the_received_ones() -> None:
    features = torch.tensor([[1.0, 1.0]], requires_grad=True)
    Moon().feature_penalty(features, [Z, OTHER]).backward()
    assert features.grad is not None and features.grad[0, 0] < 0 < features.grad[0, 1]


def test_the_last_own_model_has_the_device_s_own_personal_tensors() -> None:
    """Stored are the shared ones; the others are those that the device starts from. At first there is none."""
    one, two, three = torch.ones(1), torch.full((1,), 2.0), torch.full((1,), 3.0)
    memory = Moon().remember({}, {"shared": two})
    assert Moon().teachers({"shared": one, "head": three}, {}) == ()
    received, last = Moon().teachers({"shared": one, "head": three}, memory)
    assert received == {"shared": one, "head": three} and last == {"shared": two, "head": three}


def test_mu_zero_is_fedavg_bit_for_bit(tiny_settings: Any, tmp_path: Path) -> None:
    """E21: everybody takes part three times, with dropout."""
    found = []
    for name, method in (("moon", moon(0.0)), ("fedavg", "fedavg")):
        settings = tiny_settings(method, cohort_size=6, backbone={"dropout": True})
        fleet, _, reports = after_rounds(3, settings, tmp_path / name)
        found.append((digest(fleet.adapter()), [report.train_loss for report in reports]))
    assert found[0] == found[1]


def test_a_first_participation_is_fedavg_s_and_later_ones_cost_two_passes(tiny_settings: Any, tmp_path: Path) -> None:
    """An epoch is a forward and a backward pass; groups of like length save some padding."""
    runs = []
    for name, method in (("moon", moon(5.0)), ("fedavg", "fedavg")):
        fleet, _, reports = after_rounds(1, tiny_settings(method, cohort_size=6), tmp_path / name)
        runs.append((digest(fleet.adapter()), [report.flops for report in reports]))
    assert runs[0] == runs[1]
    _, _, reports = after_rounds(2, tiny_settings(moon(5.0), cohort_size=6), tmp_path / "later")
    first, later = ({report.device: report.flops for report in reports[i : i + 6]} for i in (0, 6))
    assert all(1.5 * first[device] < later[device] <= 2 * first[device] for device in range(6))


def test_it_changes_where_later_participations_go(tiny_settings: Any, tmp_path: Path) -> None:
    adapters = set()
    for mu in (0.0, 5.0):
        fleet, _, _ = after_rounds(2, tiny_settings(moon(mu), cohort_size=6), tmp_path / str(mu))
        adapters.add(digest(fleet.adapter()))
    assert len(adapters) == 2


def test_a_device_keeps_its_trained_shared_tensors(tiny_settings: Any, tmp_path: Path) -> None:
    """Received + delta; of a personal head nothing is kept twice."""
    settings = tiny_settings(moon(1.0, sharing="body", aggregator={"kind": "mean", "weights": "uniform"}))
    fleet, worker_spec, reports = after_rounds(1, settings, tmp_path / "run")
    states = [stored(StateStore(worker_spec.state_dir), report.device, before=1) for report in reports]
    memories = [state.memory["objective"] for state in states]
    adapter = drop(fleet.adapter(), ["head.weight", "head.bias"])
    assert all(memory.keys() == adapter.keys() for memory in memories)
    for name, value in adapter.items():
        torch.testing.assert_close(torch.stack([memory[name] for memory in memories]).mean(0), value)


def test_fibecfed_s_masks_go_with_it_if_they_look_by_a_pass_of_their_own(tiny_settings: Any, tmp_path: Path) -> None:
    settings = tiny_settings("fibecfed", cohort_size=6)
    settings["method"]["objective"] = {"kind": "moon"}
    with pytest.raises(ConfigError, match="method: mask 'fisher_neurons' takes Fisher .* set mask.source: pass"):
        check(settings, "test")
    settings["method"]["mask"] |= {"source": "pass"}
    _, _, reports = after_rounds(2, settings, tmp_path / "run")
    assert all(report.train_loss is not None and math.isfinite(report.train_loss) for report in reports)


def test_with_nothing_shared_it_is_refused(tiny_settings: Any) -> None:
    with pytest.raises(ConfigError, match="method: objective 'moon' needs shared tensors, but sharing 'none'"):
        check(tiny_settings(moon(1.0, sharing="none")), "test")
