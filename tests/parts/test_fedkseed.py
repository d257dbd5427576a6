"""FedKSeed: only K numbers travel, and everyone rebuilds the same model from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import after_rounds

from fibec_ray.config.load import check
from fibec_ray.directions import COEFFICIENTS, direction, moved
from fibec_ray.errors import ConfigError
from fibec_ray.learning.device_round import DeviceRound
from fibec_ray.learning.planning import plan_round
from fibec_ray.parts.solver.base import LossOf
from fibec_ray.parts.solver.fedkseed import FedKSeed
from fibec_ray.tensors import Tensors, drop

SGD = {"optimizer": "sgd", "learning_rate": 1e-3, "weight_decay": 0.0, "batch_size": 4}
METHOD = {
    "name": "m",
    "peft": {"kind": "seeded_lora", "num_seeds": 7},
    "solver": {"kind": "fedkseed", "num_seeds": 7},
}


class Bowl:
    """A session of two steps on l(w) = |w|^2 / 2, which the slope along z measures exactly: g = w . z."""

    rate, clip, steps = 0.1, None, 2

    def __init__(self) -> None:
        self.values = {"w": torch.tensor([3.0, -1.0, 2.0]), COEFFICIENTS: torch.zeros(1, 5)}
        self.losses: list[float] = []

    def read(self) -> Tensors:
        return {name: value.clone() for name, value in self.values.items()}

    def load(self, values: Tensors) -> None:
        self.values = values

    def generator(self, purpose: str) -> torch.Generator:
        return torch.Generator().manual_seed(1)

    def descend(self, step: Any) -> None:
        loss_of: LossOf = lambda values: float(values["w"].double().square().sum() / 2)  # noqa: E731
        self.losses = [step(loss_of) for _ in range(self.steps)]


@pytest.mark.parametrize("clip", [None, 0.5])
def test_a_step_follows_the_formula(clip: float | None) -> None:
    """w <- w - eta g z_j with g = (l(w + eps z) - l(w - eps z)) / 2 eps, and |g| at most `clip`."""
    session: Any = Bowl()
    session.clip = clip
    w, a = session.values["w"].clone(), torch.zeros(5)
    rng = torch.Generator().manual_seed(1)
    for _ in range(2):
        j = int(torch.randint(5, (1,), generator=rng))
        z = direction(j, {"w": w})["w"]
        slope = float(w @ z) if clip is None else max(-clip, min(clip, float(w @ z)))
        w, a[j] = w - 0.1 * slope * z, a[j] + 0.1 * slope
    FedKSeed(num_seeds=5, epsilon=0.01).solve(session, {})
    torch.testing.assert_close(session.values["w"], w, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(session.values[COEFFICIENTS][0], a, rtol=1e-4, atol=1e-5)
    assert session.losses[0] == pytest.approx(7.0, rel=1e-3)


def test_a_model_is_its_start_minus_what_it_moved_along_each_direction() -> None:
    start = {"b": torch.randn(2, 3), "a": torch.randn(4)}
    coefficients = torch.tensor([[0.0, 2.0, 0.0, -1.0]])
    one, other = direction(1, start), direction(3, start)
    expected = {name: value - 2 * one[name] + other[name] for name, value in start.items()}
    torch.testing.assert_close(moved(start, coefficients), expected)
    assert all(torch.equal(one[name], value) for name, value in direction(1, start).items())
    assert (
        abs(float(torch.cat([value.flatten() for value in direction(0, {"x": torch.zeros(10000)}).values()]).std()) - 1)
        < 0.05
    )


def test_the_rebuilt_model_is_the_device_s(tiny_settings: Any, tmp_path: Path) -> None:
    """After a device's steps, the server's coefficients rebuild its model, to rounding; 4 K bytes travel each way."""
    settings = tiny_settings(METHOD, cohort_size=1, local=SGD)
    fleet, worker_spec, reports = after_rounds(1, settings, tmp_path)
    worker, plan = fleet._worker, plan_round(worker_spec.job, 1)
    device, broadcast = plan.cohort[0], fleet._server.broadcast(1)
    round_ = DeviceRound(worker, plan, device, broadcast)
    start = worker.model.read()
    expected = moved(drop(worker.initial, [COEFFICIENTS]), broadcast.shared[COEFFICIENTS])
    torch.testing.assert_close(drop(start, [COEFFICIENTS]), expected, rtol=0, atol=0)
    worker_spec.job.method.solver.solve(round_.session(), {})
    trained = worker.model.read()
    assert all(not torch.equal(trained[name], value) for name, value in start.items())
    fleet.run_round(plan)
    rebuilt = worker.decoded(fleet._server.broadcast(2)).shared
    torch.testing.assert_close(rebuilt, trained, rtol=0, atol=1e-6)
    assert [(one.bytes_up, one.bytes_down) for one in reports] == [(4 * 7, 4 * 7)]
    assert reports[0].num_steps and reports[0].train_loss is not None


def test_the_mean_of_the_coefficients_is_the_mean_of_the_models(tiny_settings: Any, tmp_path: Path) -> None:
    fleet, _, _ = after_rounds(1, tiny_settings(METHOD, local=SGD), tmp_path)
    start = drop(fleet._worker.initial, [COEFFICIENTS])
    rng = torch.Generator().manual_seed(2)
    a, b = torch.randn(1, 7, generator=rng), torch.randn(1, 7, generator=rng)
    mean = {
        n: (value + 3 * other) / 4
        for (n, value), other in zip(moved(start, a).items(), moved(start, b).values(), strict=True)
    }
    torch.testing.assert_close(moved(start, (a + 3 * b) / 4), mean, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_loss_falls(tiny_settings: Any, tmp_path: Path) -> None:
    """Along 200 directions, in four rounds of all devices."""
    seeds = {"num_seeds": 200}
    method = {**METHOD, "peft": {"kind": "seeded_lora", **seeds}, "solver": {"kind": "fedkseed", **seeds}}
    settings = tiny_settings(method, cohort_size=6, rounds=4, local={**SGD, "learning_rate": 0.03, "epochs": 4})
    _, _, reports = after_rounds(4, settings, tmp_path)
    losses = [sum(float(one.train_loss or 0) for one in reports[i : i + 6]) / 6 for i in range(0, 24, 6)]
    assert losses[-1] < losses[0] - 0.05, losses


@pytest.mark.parametrize(
    ("method", "local", "message"),
    [
        (METHOD, {}, "fedkseed takes plain SGD's steps; set local.optimizer=sgd.* found adamw"),
        (METHOD, {**SGD, "weight_decay": 0.1}, "set .* local.weight_decay=0 .* weight decay 0.1"),
        ({**METHOD, "peft": "lora"}, SGD, "solver 'fedkseed' needs peft 'seeded_lora', found 'lora'"),
        ({**METHOD, "peft": "seeded_lora"}, SGD, "num_seeds 7 and .* 4096 .* differ; make them equal"),
        ({**METHOD, "objective": "proximal"}, SGD, "trains without gradients, so objective 'proximal' has no effect"),
        ({**METHOD, "aggregator": "median"}, SGD, "needs every device to send all tensors"),
    ],
)
def test_settings_without_effect_are_rejected(method: Any, local: Any, message: str, tiny_settings: Any) -> None:
    with pytest.raises(ConfigError, match=message):
        check(tiny_settings(method, local=local), "test")
