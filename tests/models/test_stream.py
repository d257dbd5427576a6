"""Weights that visit the device that computes: which are copied ahead, and that the products are those of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fibec_ray.models import stream as module
from fibec_ray.models.prefetch import CONTEXT, Prefetcher
from fibec_ray.models.stream import MultiGpu, bytes_that_stay, stream


class Copies:
    """A copier that really copies, and spoils copies that are given back."""

    def __init__(self) -> None:
        self.started: list[Tensor] = []

    def start(self, weight: Tensor) -> Tensor:
        self.started.append(weight)
        return weight.clone()

    def finish(self, started: Tensor) -> Tensor:
        return started

    def release(self, started: Tensor) -> None:
        started.fill_(float("nan"))


def passes(order: Sequence[str], num_passes: int) -> Prefetcher:
    """Asks for weights in an order, again and again."""
    weights = {name: torch.full((1,), float(ord(name))) for name in order}
    visits = Prefetcher(Copies())
    for name in order * num_passes:
        assert float(visits.fetch(weights[name])) == ord(name)
        visits.ahead()
    return visits


@pytest.mark.parametrize(
    "order",
    # Two blocks of two weights, and a head.
    ["abcde", "abcdeedcba", "abcdeecddcabba"],
    ids=["forward", "and backward", "blocks computed again"],
)
def test_from_the_second_pass_on_weights_are_on_their_way_before_they_are_asked_for(order: str) -> None:
    """But for those whose past still reaches back to the start."""
    visits = passes(order, 5)
    assert visits.num_foreseen >= (5 - 1) * len(order) - CONTEXT


def test_a_wrong_guess_costs_a_copy_and_nothing_else() -> None:
    weights, copies = [torch.full((1,), float(i)) for i in range(4)], Copies()
    visits = Prefetcher(copies, context=2)
    for i in (0, 1, 2, 0, 1, 3):
        assert float(visits.fetch(weights[i])) == i
        visits.ahead()
    assert visits.num_foreseen == 0 and len(copies.started) == 6 + 1, "2 was expected after 0 and 1"


def frozen() -> nn.Module:
    """5 -> 7 -> 3 by a Linear and by GPT-2's, with a norm between them; the weights have 35 and 21 entries."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), Conv1D(3, 7), nn.GELU(), nn.Linear(3, 2, bias=False))
    return layers.requires_grad_(False)


def outcome(layers: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, gradients of inputs, and gradients of these."""
    x = torch.linspace(-1, 1, 20).view(4, 5).requires_grad_()
    y = layers(x)
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return y, first, second


@pytest.mark.parametrize(
    "place",
    [lambda weight: weight, lambda weight: None, lambda weight: weight.clone() if weight.numel() < 30 else None],
    ids=["all visit", "all stay", "small ones visit"],
)
def test_products_are_those_of_the_model_wherever_weights_are(place: Callable[[Tensor], Tensor | None]) -> None:
    expected, streamed = outcome(frozen()), frozen()
    stream(streamed, torch.device("cpu"), place)
    for ours, plain in zip(outcome(streamed), expected, strict=True):
        torch.testing.assert_close(ours, plain)


def test_the_third_step_of_a_model_is_fetched_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three products, forward and backward, and the same for the gradients of gradients."""
    monkeypatch.setattr(module, "prefetcher", lambda device: Prefetcher(Copies()))
    layers = frozen()
    visits = stream(layers, torch.device("cpu"))
    first = outcome(layers)
    outcome(layers)
    before, fetched = visits.num_foreseen, visits.num_fetched // 2
    again = outcome(layers)
    assert visits.num_foreseen - before == fetched
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_what_stays_is_counted_without_the_weights_that_visit() -> None:
    layers: Any = frozen()
    assert bytes_that_stay(layers) == 4 * (7 + 7 + 7 + 3)
    layers.add_module("table", nn.Embedding(2, 3))
    layers.table.weight = layers[4].weight  # tied: the table needs it where it is
    assert bytes_that_stay(layers) == 4 * (7 + 7 + 7 + 3 + 6)


def test_weights_go_to_the_first_gpu_that_has_room() -> None:
    multi_gpu = MultiGpu(10, [25, 8])
    assert [multi_gpu.index(size) for size in (6, 6, 4, 9, 11, 8)] == [0, 1, 0, 1, 0, 1]
    assert multi_gpu.index(8) == 2
