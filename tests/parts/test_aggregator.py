"""Means of the updates (E14): by shard size, uniform, and those of other rules where they come to the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import pytest
import torch

from fibec_ray.parts.aggregator import AGGREGATORS
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.aggregator.fisher_merging import FisherMerging
from fibec_ray.parts.aggregator.mean import Mean
from fibec_ray.parts.aggregator.nova import Nova
from fibec_ray.parts.aggregator.robust import Krum, TrimmedMean
from fibec_ray.parts.aggregator.server_optimisers import Momentum
from fibec_ray.tensors import Tensors
from fibec_ray.types import DeviceUpdate


def update(device: int, num_samples: int, delta: Tensors) -> DeviceUpdate:
    """Of two steps, from a device whose Fisher information is 3 everywhere."""
    fisher = {f"fisher/{name}": torch.full_like(value, 3.0) for name, value in delta.items()}
    return DeviceUpdate(device, num_samples, num_steps=2, delta=delta, extras=fisher)


def mean(updates: list[DeviceUpdate], aggregator: Aggregator | None = None) -> Tensors:
    aggregator = aggregator or Mean()
    return aggregator.combine(aggregator.start(updates[0].delta, 9), updates)[0]


BY_SAMPLES = [Mean(), Momentum(), Nova(), FisherMerging(), FisherMerging(eps=0)]
"""Rules that are FedAvg for devices of equal steps and equal Fisher information, in the first round."""
UNIFORM = [
    Mean(weights="uniform"),
    Momentum(of=Mean(weights="uniform")),
    TrimmedMean(trim=0),
    Krum(num_byzantine=0, num_selected=4),
]
every_mean = pytest.mark.parametrize("rule", BY_SAMPLES + UNIFORM, ids=str)


def random_updates() -> list[DeviceUpdate]:
    rng = torch.Generator().manual_seed(0)
    sizes = [3, 1, 7, 20]
    return [
        update(k, n, {"a": torch.randn(3, 2, generator=rng), "b": torch.randn(4, generator=rng)})
        for k, n in enumerate(sizes)
    ]


@every_mean
def test_constant_payloads_by_hand(rule: Aggregator) -> None:
    """E14: (1 * 2 + 3 * 6 + 3 * 1 + 1 * 9) / 8 = 4; uniform, (2 + 6 + 1 + 9) / 4 = 4.5."""
    payloads = [(1, 2.0), (3, 6.0), (3, 1.0), (1, 9.0)]
    updates = [update(k, n, {"w": torch.full((2, 2), c)}) for k, (n, c) in enumerate(payloads)]
    torch.testing.assert_close(mean(updates, rule)["w"], torch.full((2, 2), 4.5 if rule in UNIFORM else 4.0))


@every_mean
def test_it_is_the_mean_with_these_weights_in_float64(rule: Aggregator) -> None:
    """E14."""
    updates = random_updates()
    weights = [1 if rule in UNIFORM else u.num_samples for u in updates]
    for name, value in mean(updates, rule).items():
        expected = sum(w * u.delta[name].double() for w, u in zip(weights, updates, strict=True)) / sum(weights)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected.float(), rtol=3e-7, atol=1e-8)


@every_mean
def test_the_order_of_devices_changes_no_more_than_float64_rounds(rule: Aggregator) -> None:
    """E14."""
    exact = [update(u.device, u.num_samples, {n: v.double() for n, v in u.delta.items()}) for u in random_updates()]
    first = mean(exact, rule)
    for order in permutations(exact):
        for name, value in mean(list(order), rule).items():
            torch.testing.assert_close(value, first[name], rtol=1e-14, atol=1e-15)


@every_mean
def test_equal_payloads_are_a_fixed_point(rule: Aggregator) -> None:
    """E14: bit for bit, whatever the weights."""
    delta = random_updates()[0].delta
    found = mean([update(k, n, delta) for k, n in enumerate([3, 1, 7, 11, 13])], rule)
    assert all(torch.equal(found[name], value) for name, value in delta.items())


def test_one_device_is_its_own_mean() -> None:
    (only, *_) = random_updates()
    assert all(torch.equal(value, only.delta[name]) for name, value in mean([only]).items())


@pytest.mark.parametrize("kind", AGGREGATORS)
def test_no_updates_give_no_step(kind: str) -> None:
    """A round whose devices were all lost."""
    state = AGGREGATORS[kind]().start({"w": torch.zeros(2)}, 5)
    assert AGGREGATORS[kind]().combine(state, iter(())) == ({}, state)


def test_updates_are_taken_one_at_a_time() -> None:
    """They stream: each is asked for when the one before it has been added."""
    updates, taken = random_updates(), []

    def stream() -> Iterator[DeviceUpdate]:
        for one in updates:
            taken.append(one.device)
            yield one

    delta, _ = Mean().combine({}, stream())
    assert taken == [0, 1, 2, 3] and all(torch.equal(delta[name], value) for name, value in mean(updates).items())


def test_devices_may_weigh_by_their_batches() -> None:
    """(2 * 1 + 1 * 4) / 3 = 2."""
    updates = [update(0, 5, {"w": torch.tensor([1.0])}), update(1, 4, {"w": torch.tensor([4.0])})]
    updates = [replace(each, num_batches=count) for each, count in zip(updates, (2, 1), strict=True)]
    assert mean(updates, Mean(weights="batches"))["w"].tolist() == [2.0]
