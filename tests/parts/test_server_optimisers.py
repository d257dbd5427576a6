"""Server optimisers: first steps by hand (E20), where they are FedAvg, and what they pass on."""

from __future__ import annotations

import pytest
import torch
from conftest import least_cohort
from pydantic import ValidationError

from fibec_ray.parts.aggregator import AGGREGATORS
from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.aggregator.fisher_merging import FisherMerging
from fibec_ray.parts.aggregator.mean import Mean
from fibec_ray.parts.aggregator.robust import Krum, Median
from fibec_ray.parts.aggregator.server_optimisers import Adagrad, Adam, Adaptive, Momentum, Yogi
from fibec_ray.parts.part import build
from fibec_ray.tensors import Tensors, digest
from fibec_ray.types import DeviceUpdate

ZERO = {"w": torch.zeros(2, dtype=torch.float64)}


def update(device: int, *values: float, num_samples: int = 1) -> DeviceUpdate:
    return DeviceUpdate(device, num_samples, 1, {"w": torch.tensor(values, dtype=torch.float64)})


def steps(aggregator: Aggregator, *deltas: tuple[float, float]) -> list[list[float]]:
    """The steps of rounds in which one device sends each delta."""
    state, found = aggregator.start(ZERO, 4), []
    for delta in deltas:
        step, state = aggregator.combine(state, [update(0, *delta)])
        found.append(step["w"].tolist())
    return found


def test_momentum_by_hand() -> None:
    """m = [1, -2], then .5 [1, -2] + [1, 0] = [1.5, -1]; rate 2 doubles the steps."""
    assert steps(Momentum(beta=0.5, rate=2.0), (1, -2), (1, 0)) == [[2, -4], [3, -2]]


def test_nesterov_momentum_by_hand() -> None:
    """m as above; Delta + .5 m = [1.5, -3], then [1, 0] + .5 [1.5, -1] = [1.75, -.5]."""
    assert steps(Momentum(beta=0.5, nesterov=True), (1, -2), (1, 0)) == [[1.5, -3], [1.75, -0.5]]


def test_momentum_without_memory_is_fedavg_bit_for_bit() -> None:
    """E20."""
    rng = torch.Generator().manual_seed(0)
    plain, momentum = Mean(), Momentum(beta=0, rate=1)
    state = momentum.start({"w": torch.zeros(5)}, 3)
    for _ in range(3):
        updates = [DeviceUpdate(k, 1 + k, 1, {"w": torch.randn(5, generator=rng)}) for k in range(3)]
        step, state = momentum.combine(state, updates)
        assert torch.equal(step["w"], plain.combine({}, updates)[0]["w"])


def test_momentum_goes_on_where_devices_agree_and_ends_at_ten_times_the_step() -> None:
    """rate / (1 - beta) = 1 / .1."""
    assert steps(Momentum(), *[(1, -1)] * 300)[-1] == pytest.approx([10, -10])


V0 = 0.5**2
"""v at the start, for tau = 1/2."""


@pytest.mark.parametrize(
    ("optimiser", "first", "second"),
    [
        # b1 = .5, b2 = .75, Delta = 2 twice: m = 1, then 1.5.
        (Adam(b1=0.5, b2=0.75, tau=0.5, rate=1), 0.75 * V0 + 0.25 * 4, 0.75 * 1.1875 + 1),
        (Yogi(b1=0.5, b2=0.75, tau=0.5, rate=1), V0 + 0.25 * 4, 1.25 + 0.25 * 4),
        (Adagrad(b1=0.5, tau=0.5, rate=1), V0 + 4, V0 + 8),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_adaptive_steps_by_hand(optimiser: Adaptive, first: float, second: float) -> None:
    """E20: m / (sqrt v + tau) with v = b2 tau^2 + (1 - b2) Delta^2 and so on; entries that stay 0 take no step."""
    expected = [[1 / (first**0.5 + 0.5), 0], [1.5 / (second**0.5 + 0.5), 0]]
    for found, by_hand in zip(steps(optimiser, (2, 0), (2, 0)), expected, strict=True):
        assert found == pytest.approx(by_hand, rel=1e-12)


def test_yogi_s_v_falls_by_no_more_than_the_square_where_adam_s_falls_by_a_share() -> None:
    """v = 1, Delta^2 = .04, b2 = .5: Adam .5 + .02, Yogi 1 - .02."""
    v, square = torch.tensor(1.0).double(), torch.tensor(0.04).double()
    assert float(Adam(b2=0.5).second(v, square)) == pytest.approx(0.52)
    assert float(Yogi(b2=0.5).second(v, square)) == pytest.approx(0.98)


def test_yogi_is_adam_where_v_is_the_square() -> None:
    """E20: |Delta| = tau in the first round leaves v as it is."""
    v = torch.tensor([1e-6, 4.0]).double()
    torch.testing.assert_close(Yogi().second(v, v), v, rtol=0, atol=0)
    torch.testing.assert_close(Adam().second(v, v), v, rtol=1e-15, atol=0)
    assert steps(Yogi(), (1e-3, -1e-3)) == [pytest.approx(step, rel=1e-12) for step in steps(Adam(), (1e-3, -1e-3))]


def test_adam_without_memory_and_with_large_tau_is_scaled_fedavg() -> None:
    """E20: rate Delta / (|Delta| + tau) with |Delta| at most 1e-6 tau."""
    (step,) = steps(Adam(b1=0, b2=0, tau=1e3, rate=1e3), (1e-3, -5e-4))
    assert step == pytest.approx([1e-3, -5e-4], rel=1e-5)
    (step,) = steps(Adam(b1=0, b2=0, tau=1, rate=3), (1, -0.5))
    assert step == pytest.approx([3 / 2, -1.5 / 1.5])


def test_adagrad_s_steps_shrink_while_adam_s_do_not() -> None:
    deltas = [(0.1, 0.0)] * 50
    adagrad, adam = steps(Adagrad(b1=0), *deltas), steps(Adam(b1=0), *deltas)
    assert all(later[0] < earlier[0] for earlier, later in zip(adagrad, adagrad[1:], strict=False))
    assert adagrad[-1][0] == pytest.approx(1e-2 / 50**0.5, rel=0.02)
    assert adam[-1][0] > 1e-2


OPTIMISERS = [Momentum, Adam, Yogi, Adagrad]


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_a_round_without_updates_leaves_the_state_alone(kind: type[Momentum]) -> None:
    optimiser = kind()
    _, state = optimiser.combine(optimiser.start(ZERO, 4), [update(0, 1, 2)])
    before = digest(state)
    step, after = optimiser.combine(state, iter(()))
    assert step == {} and digest(after) == before


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_the_step_is_taken_from_the_aggregator_below(kind: type[Momentum]) -> None:
    """Deltas 0, 1 and 8 with 1, 2 and 5 samples: the median 1, the uniform mean 3, the mean 42 / 8."""
    updates = [update(k, x, -x, num_samples=n) for k, (x, n) in enumerate([(0, 1), (1, 2), (8, 5)])]
    for below, delta in ((Median(), 1), (Mean(weights="uniform"), 3), (Mean(), 42 / 8)):
        optimiser = kind(of=below)
        step, _ = optimiser.combine(optimiser.start(ZERO, 4), updates)
        assert step["w"].tolist() == pytest.approx(steps(kind(), (delta, -delta))[0])


class Counting(Aggregator):
    """An aggregator with a state of its own: it counts its rounds."""

    def start(self, shared: Tensors, num_devices: int) -> Tensors:
        return {"rounds": torch.tensor(0), "w": torch.tensor(num_devices)}

    def combine(self, state: Tensors, updates: object) -> tuple[Tensors, Tensors]:
        step, _ = super().combine(state, updates)  # type: ignore[arg-type]
        return step, state | {"rounds": state["rounds"] + 1}


def test_the_state_of_the_aggregator_below_is_kept_apart() -> None:
    adam = Adam(of=Counting())
    state = adam.start(ZERO, 7)
    for _ in range(3):
        _, state = adam.combine(state, [update(0, 1, 2)])
    assert int(state["of/rounds"]) == 3 and int(state["of/w"]) == 7
    assert state.keys() == {"of/rounds", "of/w", "own/m/w", "own/v/w"}


def test_what_the_aggregator_below_needs_is_passed_on() -> None:
    assert least_cohort(Adam(of=Krum(num_byzantine=2))) == 7 and least_cohort(Adam()) == 1


@pytest.mark.parametrize("kind", OPTIMISERS)
def test_it_is_built_with_the_aggregator_below_by_kind_or_by_mapping(kind: type[Momentum]) -> None:
    name = kind().kind
    assert build(AGGREGATORS, name) == kind()
    assert build(AGGREGATORS, {"kind": name, "of": "median"}) == kind(of=Median())
    built = build(AGGREGATORS, {"kind": name, "of": {"kind": "fisher_merging", "normalise": True}})
    assert built == kind(of=FisherMerging(normalise=True))
    assert build(AGGREGATORS, built.model_dump()) == built


@pytest.mark.parametrize("below", ["adam", "feddyn", "no_such", 5, {"weights": "none"}])
def test_what_cannot_stand_below_is_refused(below: object) -> None:
    with pytest.raises(ValueError):
        build(AGGREGATORS, {"kind": "adam", "of": below})


def test_a_server_optimiser_given_as_a_part_is_refused_below_another_too() -> None:
    with pytest.raises(ValidationError, match="'yogi' cannot be used inside another"):
        Adam(of=Yogi())


def test_nesterov_without_momentum_is_refused() -> None:
    with pytest.raises(ValidationError, match="nesterov has an effect only with beta above 0"):
        Momentum(beta=0, nesterov=True)
