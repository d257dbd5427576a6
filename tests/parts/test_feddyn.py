"""FedDyn, both halves (E21): by hand, on quadratics with exact solves, and over whole rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from device_states import stored
from torch import nn

from fibec_ray.config.load import check
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.planning import plan_round
from fibec_ray.learning.store import StateStore
from fibec_ray.parts.aggregator.feddyn import FedDyn
from fibec_ray.parts.objective.feddyn import DynamicRegulariser
from fibec_ray.runs.simulation import cache_dir, prepare
from fibec_ray.tensors import Tensors, add, under_prefix
from fibec_ray.types import DeviceUpdate

ALPHA = 0.5
CURVES, CENTRES = torch.tensor([0.5, 1.0, 2.0, 4.0]).double(), torch.tensor([3.0, -1.0, 0.5, 2.0]).double()
"""Of the losses a_k / 2 (x - b_k)^2 of four devices."""
OPTIMUM = float((CURVES * CENTRES).sum() / CURVES.sum())


class Federation:
    """Four devices that solve their regularised problem exactly, with the parts' own memories and server."""

    def __init__(self) -> None:
        self.objective, self.aggregator = DynamicRegulariser(alpha=ALPHA), FedDyn(alpha=ALPHA)
        self.shared: Tensors = {"x": torch.zeros(1).double()}
        self.state = self.aggregator.start(self.shared, 4)
        self.memories: list[Tensors] = [{} for _ in CURVES]

    def solve(self, device: int) -> torch.Tensor:
        """a (x - b) - g + alpha (x - theta) = 0."""
        linear = self.memories[device].get("x", torch.zeros(1).double())
        a, b = CURVES[device], CENTRES[device]
        return (a * b + linear + ALPHA * self.shared["x"]) / (a + ALPHA)

    def round(self, cohort: list[int]) -> None:
        updates = []
        for device in cohort:
            delta = {"x": self.solve(device) - self.shared["x"]}
            self.memories[device], _ = self.objective.finish(self.memories[device], {}, delta, 3, 0.1)
            updates.append(DeviceUpdate(device, 10**device, 3, delta))
        step, self.state = self.aggregator.combine(self.state, updates)
        self.shared = add(self.shared, step)


def test_the_local_solution_is_where_loss_penalty_and_linear_term_balance() -> None:
    """The gradient that the parts make of the plain one is 0 there."""
    federation = Federation()
    federation.round([0, 1, 2, 3])
    for device in range(4):
        x = nn.Parameter(federation.solve(device))
        penalty = federation.objective.penalty({"x": x}, federation.shared)
        assert penalty is not None
        (CURVES[device] / 2 * (x - CENTRES[device]).square().sum() + penalty).backward()
        federation.objective.correct({"x": x}, federation.memories[device], {})
        assert x.grad is not None and x.grad.item() == pytest.approx(0, abs=1e-14)


def test_memories_by_hand() -> None:
    """g = 0 - .5 * [2, -4], then g - .5 * [1, 1]; nothing is sent up."""
    objective = DynamicRegulariser(alpha=0.5)
    memory, sent = objective.finish({}, {}, {"w": torch.tensor([2.0, -4.0])}, 3, 0.1)
    assert memory["w"].tolist() == [-1, 2] and sent == {}
    memory, _ = objective.finish(memory, {}, {"w": torch.tensor([1.0, 1.0])}, 3, 0.1)
    assert memory["w"].tolist() == [-1.5, 1.5]


def test_the_server_by_hand() -> None:
    """Two of four devices send 2 and 4: h = -.5 (6 / 4) = -.75, step 3 + .75 / .5 = 4.5. Then 0 and 0: step 1.5."""
    aggregator = FedDyn(alpha=0.5)
    state = aggregator.start({"w": torch.zeros(1)}, 4)
    sent = [DeviceUpdate(k, 1 + k, 1, {"w": torch.tensor([2.0 + 2 * k])}) for k in range(2)]
    step, state = aggregator.combine(state, iter(sent))
    assert step["w"].tolist() == [4.5] and state["h/w"].tolist() == [-0.75]
    still = [DeviceUpdate(k, 1, 1, {"w": torch.zeros(1)}) for k in range(2)]
    assert aggregator.combine(state, still)[0]["w"].tolist() == [1.5]


def test_its_fixed_point_is_the_global_optimum() -> None:
    """E21: full participation. There g_k is the gradient of k's loss, and h, their mean, is 0."""
    federation = Federation()
    for _ in range(300):
        federation.round([0, 1, 2, 3])
    assert float(federation.shared["x"]) == pytest.approx(OPTIMUM, abs=1e-13)
    for device, memory in enumerate(federation.memories):
        assert float(memory["x"]) == pytest.approx(float(CURVES[device] * (OPTIMUM - CENTRES[device])), abs=1e-12)
    assert float(federation.state["h/x"]) == pytest.approx(0, abs=1e-13)


def test_two_devices_a_round_get_there_as_well() -> None:
    federation, rng = Federation(), torch.Generator().manual_seed(0)
    for _ in range(1500):
        federation.round(torch.randperm(4, generator=rng)[:2].tolist())
    assert float(federation.shared["x"]) == pytest.approx(OPTIMUM, abs=1e-8)


def test_personal_tensors_have_the_quadratic_term_alone() -> None:
    """The memory names shared tensors; a memory of the first participation names none."""
    params = {"w": nn.Parameter(torch.zeros(1)), "personal": nn.Parameter(torch.zeros(1))}
    for memory, expected in (({}, 5.0), ({"w": torch.tensor([2.0])}, 3.0)):
        for param in params.values():
            param.grad = torch.tensor([5.0])
        DynamicRegulariser().correct(params, memory, {})
        assert [param.grad.item() for param in params.values() if param.grad is not None] == [expected, 5.0]


def test_over_rounds_h_is_the_mean_of_the_devices_memories(tiny_settings: Any, tmp_path: Path) -> None:
    """Three of six devices a round, AdamW; what travels is FedAvg's payload."""
    experiment = check(tiny_settings("feddyn"), "test")
    prepared = prepare(experiment, tmp_path)
    worker_spec = WorkerSpec(experiment.job(prepared.answers(experiment.task)), tmp_path, cache_dir())
    fleet = LocalFleet(worker_spec)
    fleet.setup()
    for round_ in range(3):
        reports = fleet.run_round(plan_round(worker_spec.job, round_)).reports
        assert all(r.bytes_up_extras == 0 and r.bytes_up_delta == r.bytes_down for r in reports)
    store = StateStore(worker_spec.state_dir)
    memories = [stored(store, device, before=3).memory.get("objective", {}) for device in range(6)]
    means = under_prefix("h", fleet._server._state)
    assert means and any(value.any() for value in means.values())
    for name, value in means.items():
        total = sum((memory[name].double() for memory in memories if memory), torch.zeros_like(value))
        torch.testing.assert_close(value, (total / 6).float(), rtol=1e-4, atol=1e-7)
