"""SCAFFOLD (E19): control variates by hand, on quadratics, and over whole rounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from device_states import stored
from torch import Tensor, nn

from fibec_ray.config.load import check
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.planning import plan_round
from fibec_ray.learning.store import StateStore
from fibec_ray.parts.aggregator.mean import Mean
from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.objective.scaffold import Scaffold
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.tensors import Tensors, add, digest
from fibec_ray.types import DeviceUpdate

RATE, STEPS = 0.1, 5
CURVES, CENTRES = torch.tensor([0.5, 1.0, 2.0, 4.0]).double(), torch.tensor([3.0, -1.0, 0.5, 2.0]).double()
"""Of the losses a_k / 2 (x - b_k)^2 of four devices."""
OPTIMUM = float((CURVES * CENTRES).sum() / CURVES.sum())


class Federation:
    """Four devices on one number each, with the parts' own code for steps, memories and the server."""

    def __init__(self, objective: Objective, weights: Sequence[int] = (1, 1, 1, 1)):
        self.objective, self.aggregator, self.weights = objective, Mean(), weights
        self.shared: Tensors = {"x": torch.zeros(1).double()}
        self.control = objective.absorb(self.shared, {}, (), len(CURVES))
        self.memories: list[Tensors] = [{} for _ in CURVES]

    def train(self, device: int) -> DeviceUpdate:
        x = nn.Parameter(self.shared["x"].clone())
        for _ in range(STEPS):
            x.grad = CURVES[device] * (x.detach() - CENTRES[device])
            self.objective.correct({"x": x}, self.memories[device], self.control)
            x.data.sub_(RATE * x.grad)
        delta = {"x": x.detach() - self.shared["x"]}
        self.memories[device], extras = self.objective.finish(self.memories[device], self.control, delta, STEPS, RATE)
        return DeviceUpdate(device, self.weights[device], STEPS, delta, extras)

    def round(self, cohort: Sequence[int]) -> None:
        updates = [self.train(device) for device in cohort]
        step, _ = self.aggregator.combine({}, updates)
        self.shared = add(self.shared, step)
        self.control = self.objective.absorb(
            self.shared, self.control, [update.extras for update in updates], len(CURVES)
        )

    @property
    def x(self) -> float:
        return float(self.shared["x"])


def pairs(num_rounds: int) -> list[list[int]]:
    """Two of the four for each round."""
    rng = torch.Generator().manual_seed(0)
    return [torch.randperm(4, generator=rng)[:2].tolist() for _ in range(num_rounds)]


def test_a_control_variate_by_hand() -> None:
    """delta = [-.6, .2] in 2 steps of .1: mean gradient [3, -1]. With c = [1, 1] and c_k = [2, 0]: [4, -2]."""
    control, delta = {"w": torch.tensor([1.0, 1.0])}, {"w": torch.tensor([-0.6, 0.2])}
    memory, extras = Scaffold().finish({"w": torch.tensor([2.0, 0.0])}, control, delta, 2, 0.1)
    assert memory["w"].tolist() == pytest.approx([4, -2])
    assert extras.keys() == {"control/w"} and extras["control/w"].tolist() == pytest.approx([2, -2])


def test_the_server_s_variate_by_hand() -> None:
    """Two of four devices send 2 and 4: c = 1 + (2 / 4) 3 = 2.5. A round without updates leaves it."""
    control = {"w": torch.tensor([1.0])}
    sent = [{"control/w": torch.tensor([2.0])}, {"control/w": torch.tensor([4.0])}]
    assert Scaffold().absorb(control, control, sent, 4)["w"].tolist() == [2.5]
    assert Scaffold().absorb(control, control, [], 4)["w"].tolist() == [1.0]


def test_the_gradient_is_corrected_for_shared_tensors_alone() -> None:
    """g - c_k + c = 5 - 2 + 1; without a memory g + c; tensors without a control or a gradient are left as they are."""
    params = {name: nn.Parameter(torch.zeros(1)) for name in ("w", "personal", "unused")}
    control = {"w": torch.tensor([1.0]), "unused": torch.tensor([1.0])}
    for memory, expected in (({"w": torch.tensor([2.0])}, 4.0), ({}, 6.0)):
        params["w"].grad, params["personal"].grad = torch.tensor([5.0]), torch.tensor([7.0])
        Scaffold().correct(params, memory, control)
        assert params["w"].grad.item() == expected and params["personal"].grad.item() == 7.0
        assert params["unused"].grad is None


def test_a_variate_is_the_mean_gradient_of_the_steps() -> None:
    federation = Federation(Scaffold())
    for cohort in pairs(3):
        federation.round(cohort)
    x, gradients = federation.shared["x"].clone(), []
    correction = federation.control["x"] - federation.memories[2].get("x", torch.zeros(1).double())
    for _ in range(STEPS):
        gradients.append(CURVES[2] * (x - CENTRES[2]))
        x = x - RATE * (gradients[-1] + correction)
    federation.train(2)
    torch.testing.assert_close(federation.memories[2]["x"], torch.stack(gradients).mean(0))


def test_the_first_round_is_uniform_fedavg() -> None:
    """E19: all variates are 0."""
    plain, scaffold = Federation(Objective()), Federation(Scaffold())
    plain.round([0, 2, 3])
    scaffold.round([0, 2, 3])
    assert scaffold.x == plain.x != 0


def test_it_reaches_the_optimum_where_fedavg_stalls() -> None:
    """E19: four quadratics whose optima and curvatures differ, two devices a round."""
    plain, scaffold = Federation(Objective()), Federation(Scaffold())
    distances = []
    for cohort in pairs(600):
        plain.round(cohort)
        scaffold.round(cohort)
        distances.append(abs(plain.x - OPTIMUM))
    assert scaffold.x == pytest.approx(OPTIMUM, abs=1e-12)
    assert sum(distances[-100:]) / 100 > 0.1
    for device, memory in enumerate(scaffold.memories):
        assert float(memory["x"]) == pytest.approx(float(CURVES[device] * (OPTIMUM - CENTRES[device])), abs=1e-10)


def test_the_server_s_variate_is_always_the_mean_of_the_devices_ones() -> None:
    """E19: under partial participation too."""
    federation = Federation(Scaffold())
    for cohort in pairs(30):
        federation.round(cohort)
        mean = sum((memory.get("x", torch.zeros(1)).double() for memory in federation.memories), torch.zeros(1)) / 4
        torch.testing.assert_close(federation.control["x"], mean, rtol=0, atol=1e-15)


# --- whole rounds

SGD = {"optimizer": "sgd", "learning_rate": 0.2, "schedule": "constant"}


def fleet_of(settings: dict[str, Any], folder: Path) -> tuple[LocalFleet, WorkerSpec]:
    experiment = check(settings, "test")
    folder.mkdir()
    prepared = prepare(experiment, folder)
    worker_spec = WorkerSpec(experiment.job(prepared.answers(experiment.task)), folder, cache_dir())
    return LocalFleet(worker_spec), worker_spec


def test_with_one_device_it_is_sgd_bit_for_bit(tiny_settings: Any, tmp_path: Path) -> None:
    """E19: c = c_k, whatever clipping and weight decay do."""
    found = {}
    for method in ("fedavg", "scaffold"):
        settings = tiny_settings(method, num_devices=1, cohort_size=1, local=SGD | {"weight_decay": 0.1})
        fleet, worker_spec = fleet_of(settings, tmp_path / method)
        fleet.setup()
        for round_ in range(3):
            fleet.run_round(plan_round(worker_spec.job, round_))
        found[method] = digest(fleet.adapter())
    assert found["scaffold"] == found["fedavg"]


def test_over_rounds_variates_add_up_and_their_bytes_are_counted(tiny_settings: Any, tmp_path: Path) -> None:
    """Three of six devices a round; what travels is twice FedAvg's payload, each way."""
    fleet, worker_spec = fleet_of(tiny_settings("scaffold", local=SGD), tmp_path / "run")
    fleet.setup()
    for round_ in range(3):
        reports = fleet.run_round(plan_round(worker_spec.job, round_)).reports
        assert all(r.bytes_up_extras == r.bytes_up_delta == r.bytes_down / 2 for r in reports)
    store, control = StateStore(worker_spec.state_dir), fleet._server.broadcast(3).control
    memories = [stored(store, device, before=3).memory.get("objective", {}) for device in range(6)]
    assert 3 < sum(map(bool, memories)) <= 6
    for name, value in control.items():
        total: Tensor = sum((memory[name].double() for memory in memories if memory), torch.zeros_like(value))
        torch.testing.assert_close(value, (total / 6).float(), rtol=1e-4, atol=1e-7)
    assert any(value.any() for value in control.values())
