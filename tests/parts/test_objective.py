"""What is added to the loss, by hand."""

from __future__ import annotations

import torch
from torch import nn

from fibec_ray.parts.objective.base import Objective
from fibec_ray.parts.objective.proximal import Proximal

ANCHOR = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[0.0]])}


def moved() -> dict[str, nn.Parameter]:
    """By [2, -1] and [[3]]: squared distance 4 + 1 + 9 = 14."""
    return {"a": nn.Parameter(torch.tensor([3.0, 1.0])), "b": nn.Parameter(torch.tensor([[3.0]]))}


def test_the_proximal_penalty_by_hand() -> None:
    """mu / 2 * 14 = 3.5 for mu = 1/2."""
    penalty = Proximal(mu=0.5).penalty(moved(), ANCHOR)
    assert penalty is not None and penalty.shape == () and penalty.item() == 3.5


def test_its_gradient_is_mu_times_the_distance() -> None:
    """mu (w - w0) = [1, -1/2] and [[3/2]]; the anchor gets none."""
    params = moved()
    Proximal(mu=0.5).penalty(params, ANCHOR).backward()  # type: ignore[union-attr]
    assert params["a"].grad.tolist() == [1.0, -0.5] and params["b"].grad.tolist() == [[1.5]]  # type: ignore[union-attr]


def test_at_the_anchor_there_is_neither_penalty_nor_pull() -> None:
    params = {name: nn.Parameter(value.clone()) for name, value in ANCHOR.items()}
    penalty = Proximal(mu=1.0).penalty(params, ANCHOR)
    assert penalty is not None and penalty.item() == 0
    penalty.backward()
    assert not any(p.grad.any() for p in params.values())  # type: ignore[union-attr]


def test_mu_zero_adds_zero() -> None:
    """E19: neither to the loss nor to the gradient."""
    params = moved()
    penalty = Proximal(mu=0.0).penalty(params, ANCHOR)
    assert penalty is not None and penalty.item() == 0
    penalty.backward()
    assert not any(p.grad.any() for p in params.values())  # type: ignore[union-attr]


def test_the_plain_objective_adds_sends_and_keeps_nothing() -> None:
    plain, params = Objective(), moved()
    assert plain.penalty(params, ANCHOR) is None
    plain.correct(params, {}, {})
    assert all(p.grad is None for p in params.values())
    assert plain.finish({}, {}, ANCHOR, 3, 0.1) == ({}, {})
    assert plain.absorb(ANCHOR, {}, [{}, {}], 5) == {}
