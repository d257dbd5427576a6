"""The mean weighted by shard size (E14), and the server's step from it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations

import pytest
import torch

from fibec_ray.parts.aggregator import AGGREGATORS
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.tensors import Tensors
from fibec_ray.types import ClientUpdate


def update(device: int, num_samples: int, delta: Tensors) -> ClientUpdate:
    return ClientUpdate(device, num_samples, num_steps=1, delta=delta)


def mean(updates: list[ClientUpdate]) -> Tensors:
    return Aggregator().combine({}, updates)[0]


def random_updates() -> list[ClientUpdate]:
    rng = torch.Generator().manual_seed(0)
    sizes = [3, 1, 7, 20]
    return [
        update(k, n, {"a": torch.randn(3, 2, generator=rng), "b": torch.randn(4, generator=rng)})
        for k, n in enumerate(sizes)
    ]


def test_constant_payloads_by_hand() -> None:
    """E14: (1 * 2 + 3 * 6 + 4 * 1) / 8 = 3."""
    updates = [update(k, n, {"w": torch.full((2, 2), c)}) for k, (n, c) in enumerate([(1, 2.0), (3, 6.0), (4, 1.0)])]
    assert mean(updates)["w"].tolist() == [[3.0, 3.0], [3.0, 3.0]]


def test_it_is_the_mean_weighted_by_samples_in_float64() -> None:
    """E14."""
    updates = random_updates()
    total = sum(u.num_samples for u in updates)
    for name, value in mean(updates).items():
        expected = sum(u.num_samples * u.delta[name].double() for u in updates) / total
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected.float(), rtol=1e-7, atol=1e-8)


def test_the_order_of_devices_changes_no_more_than_float64_rounds() -> None:
    """E14."""
    exact = [update(u.device, u.num_samples, {n: v.double() for n, v in u.delta.items()}) for u in random_updates()]
    first = mean(exact)
    for order in permutations(exact):
        for name, value in mean(list(order)).items():
            torch.testing.assert_close(value, first[name], rtol=1e-14, atol=1e-15)


def test_equal_payloads_are_a_fixed_point() -> None:
    """E14: bit for bit, whatever the weights."""
    delta = random_updates()[0].delta
    found = mean([update(k, n, delta) for k, n in enumerate([3, 1, 7, 11, 13])])
    assert all(torch.equal(found[name], value) for name, value in delta.items())


def test_one_device_is_its_own_mean() -> None:
    (only, *_) = random_updates()
    assert all(torch.equal(value, only.delta[name]) for name, value in mean([only]).items())


@pytest.mark.parametrize("kind", AGGREGATORS)
def test_no_updates_give_no_step(kind: str) -> None:
    """A round whose devices were all lost."""
    state = AGGREGATORS[kind]().start({"w": torch.zeros(2)})
    assert AGGREGATORS[kind]().combine(state, iter(())) == ({}, state)


def test_updates_are_taken_one_at_a_time() -> None:
    """They stream: each is asked for when the one before it has been added."""
    updates, taken = random_updates(), []

    def stream() -> Iterator[ClientUpdate]:
        for one in updates:
            taken.append(one.device)
            yield one

    delta, _ = Aggregator().combine({}, stream())
    assert taken == [0, 1, 2, 3] and all(torch.equal(delta[name], value) for name, value in mean(updates).items())
