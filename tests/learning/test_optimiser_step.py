"""Optimiser steps of stacked tensors match those of each device alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fibec_ray.learning.job import LocalTraining
from fibec_ray.learning.optimiser_step import OptimiserStep, clip_lanes
from fibec_ray.parts.solver.base import Pull

SHAPES = {"matrix": (2, 3), "vector": (4,), "scalar": ()}
SETTINGS: list[dict[str, Any]] = [
    {"clip": 0.5},
    {"clip": None, "weight_decay": 0.1},
    {"optimizer": "sgd", "momentum": 0.9, "clip": 1.0},
]


def draws(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=rng) for name, shape in SHAPES.items()}


def stacked(each: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([one[name] for one in each]) for name in each[0]}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("extras", [False, True], ids=["free", "masked and pulled"])
def test_lanes_step_like_devices_alone(settings: dict[str, Any], extras: bool) -> None:
    """Three lanes. The last one takes two steps, the others four."""
    local, lanes = LocalTraining(**settings), range(3)
    keep = [{"matrix": draws(20 + lane)["matrix"] > 0} if extras else {} for lane in lanes]
    pulls = [Pull(draws(30 + lane), 2.0, follow=0.3) if extras else None for lane in lanes]
    alone = []
    for lane in lanes:
        params = {name: nn.Parameter(value) for name, value in draws(lane).items()}
        step = OptimiserStep(params, local, 0.1, keep[lane], pulls[lane])
        for number in range(2 if lane == 2 else 4):
            for name, param in params.items():
                param.grad = draws(100 + 10 * lane + number)[name]
            step.step()
            step.follow()
        alone.append(({name: value.detach() for name, value in params.items()}, step.centre))

    values = stacked([draws(lane) for lane in lanes])
    pull = Pull(stacked([dict(one.centre) for one in pulls if one]), 2.0, follow=0.3) if extras else None
    params = {name: nn.Parameter(value) for name, value in values.items()}
    step = OptimiserStep(params, local, 0.1, stacked(keep), pull, stacked=True)
    centres = step.centre
    for number in range(4):
        count = 3 if number < 2 else 2
        if number == 2:
            step.narrow(2)
        for name, param in step.params.items():
            param.grad = stacked([draws(100 + 10 * lane + number) for lane in range(count)])[name]
        step.step()
        step.follow()
    for lane, (wanted, centre) in enumerate(alone):
        torch.testing.assert_close({name: value[lane] for name, value in values.items()}, wanted)
        torch.testing.assert_close({name: value[lane] for name, value in centres.items()}, centre)
    if extras:
        still = ~keep[0]["matrix"]
        assert torch.equal(values["matrix"][0][still], draws(0)["matrix"][still])


def test_each_lane_is_clipped_by_its_own_norm() -> None:
    """Norms 5 and 0.5 over two tensors; only the first is above 1."""
    grads = [torch.tensor([[3.0], [0.3]]), torch.tensor([[0.0, 4.0], [0.0, 0.4]])]
    clip_lanes(grads, 1.0)
    torch.testing.assert_close(grads[0], torch.tensor([[0.6], [0.3]]))
    torch.testing.assert_close(grads[1], torch.tensor([[0.0, 0.8], [0.0, 0.4]]))


def test_a_lane_with_infinite_gradients_spoils_no_other() -> None:
    grads = [torch.tensor([[float("inf")], [3.0]])]
    clip_lanes(grads, 1.0)
    assert not grads[0][0].isfinite() and float(grads[0][1]) == pytest.approx(1.0)
