"""Median, trimmed mean and Krum by hand, what they withstand, and the cohorts that they refuse."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from fibec_ray.parts.aggregator.base import Aggregator
from fibec_ray.parts.aggregator.mean import Mean
from fibec_ray.parts.aggregator.robust import Krum, Median, TrimmedMean
from fibec_ray.parts.aggregator.server_optimisers import Adam
from fibec_ray.types import DeviceUpdate


def updates(*points: tuple[float, ...]) -> list[DeviceUpdate]:
    """Shard sizes differ, and must not matter."""
    return [DeviceUpdate(k, 1 + 10 * k, 1, {"w": torch.tensor(point)}) for k, point in enumerate(points)]


def combined(aggregator: Aggregator, *points: tuple[float, ...]) -> list[float]:
    step, state = aggregator.combine({}, iter(updates(*points)))
    assert state == {}
    return [] if not step else step["w"].tolist()


def test_the_median_of_an_odd_number_by_hand() -> None:
    """Each coordinate by itself: of 1, 9, 2 and of -1, 0, 100."""
    assert combined(Median(), (1.0, -1.0), (9.0, 0.0), (2.0, 100.0)) == [2, 0]


def test_the_median_of_an_even_number_is_the_mean_of_the_middle_two() -> None:
    assert combined(Median(), (1.0,), (9.0,), (2.0,), (5.0,)) == [3.5]


def test_the_median_of_one_or_two_is_their_mean() -> None:
    assert combined(Median(), (4.0,)) == [4] and combined(Median(), (4.0,), (8.0,)) == [6]


def test_the_trimmed_mean_by_hand() -> None:
    """floor(.2 * 5) = 1 of each end: (2 + 3 + 7) / 3 = 4."""
    assert combined(TrimmedMean(trim=0.2), (3.0,), (-50.0,), (7.0,), (900.0,), (2.0,)) == [4]


def test_trimming_nothing_is_the_uniform_mean() -> None:
    points = [(3.0, 1.0), (-5.0, 2.0), (8.0, 6.0)]
    assert combined(TrimmedMean(trim=0), *points) == combined(Mean(weights="uniform"), *points) == [2, 3]


def test_trimming_the_most_is_the_median() -> None:
    """floor(.49 * 5) = 2 of each end."""
    points = [(3.0,), (-50.0,), (7.0,), (900.0,), (2.0,)]
    assert combined(TrimmedMean(trim=0.49), *points) == combined(Median(), *points) == [3]


def test_what_is_trimmed_does_not_hang_on_the_last_bit() -> None:
    """.29 * 100 is 28.999...6 in floating point, and 29 is meant: of 0 .. 99, the mean of 29 .. 70 is 49.5."""
    step = TrimmedMean(trim=0.29).middle(torch.arange(100.0).double() ** 2)
    assert float(step) == pytest.approx(sum(k**2 for k in range(29, 71)) / 42)
    assert TrimmedMean(trim=0.2).least_cohort == 5 and TrimmedMean(trim=0.1).least_cohort == 10
    assert TrimmedMean(trim=0.3).least_cohort == 4 and TrimmedMean(trim=0).least_cohort == 1


def test_krum_by_hand() -> None:
    """On a line at 0, 1, 3, 7, 100 with f = 1: each has 5 - 1 - 2 = 2 neighbours.

    Scores: 0: 1 + 9 = 10; 1: 1 + 4 = 5; 3: 4 + 9 = 13; 7: 16 + 36 = 52; 100: far more.
    """
    points = [(0.0,), (1.0,), (3.0,), (7.0,), (100.0,)]
    scores = Krum(num_byzantine=1).scores(torch.tensor(points).double())
    assert scores.tolist() == [10, 5, 13, 52, 93**2 + 97**2]
    assert combined(Krum(num_byzantine=1), *points) == [1]
    assert combined(Krum(num_byzantine=1, num_selected=3), *points) == [pytest.approx(4 / 3)]


def test_krum_looks_at_all_tensors_together() -> None:
    """Device 4 is the nearest in `a` and far off in `b`."""
    given = [DeviceUpdate(k, 1, 1, {"a": torch.tensor([k / 10]), "b": torch.zeros(2, 2)}) for k in range(4)]
    given.append(DeviceUpdate(4, 1, 1, {"a": torch.tensor([0.15]), "b": torch.full((2, 2), 9.0)}))
    step, _ = Krum(num_byzantine=1, num_selected=4).combine({}, given)
    assert float(step["a"]) == pytest.approx(0.15) and not step["b"].any() and step["b"].shape == (2, 2)


def test_a_tie_goes_to_the_first_of_the_cohort() -> None:
    """With three neighbours each, the points 1 and 2 both score 1 + 1 + 4."""
    assert combined(Krum(num_byzantine=0), (0.0,), (3.0,), (2.0,), (1.0,), (9.0,)) == [2]
    assert combined(Krum(num_byzantine=0), (0.0,), (3.0,), (1.0,), (2.0,), (9.0,)) == [1]


def test_krum_of_all_is_the_uniform_mean() -> None:
    points = [(3.0, 1.0), (-5.0, 2.0), (8.0, 6.0)]
    assert combined(Krum(num_byzantine=0, num_selected=3), *points) == combined(Mean(weights="uniform"), *points)


ROBUST = [Median(), TrimmedMean(trim=0.2), Krum(num_byzantine=1, num_selected=2)]


@pytest.mark.parametrize("aggregator", ROBUST, ids=lambda one: one.kind)
def test_one_device_of_five_cannot_carry_them_away(aggregator: Aggregator) -> None:
    """Whatever it sends, the step stays between the others' values; a mean goes along with it."""
    honest = [(1.0, -1.0), (1.1, -1.2), (0.9, -0.9), (1.2, -1.1)]
    for lie in (1e6, -1e6):
        step = combined(aggregator, *honest, (lie, lie))
        assert 0.9 <= step[0] <= 1.2 and -1.2 <= step[1] <= -0.9
        assert abs(combined(Mean(), *honest, (lie, lie))[0]) > 1e5


@pytest.mark.parametrize("aggregator", ROBUST, ids=lambda one: one.kind)
def test_they_do_not_depend_on_the_order_of_devices_and_keep_what_all_say(aggregator: Aggregator) -> None:
    points = [(1.0, -1.0), (1.1, -1.25), (0.9, -0.5), (1.25, -1.1), (4.0, 4.0)]
    first = combined(aggregator, *points)
    assert all(combined(aggregator, *order) == pytest.approx(first) for order in permutations(points))
    assert combined(aggregator, *[(0.1, 0.7)] * 5) == torch.tensor([0.1, 0.7]).tolist()


@pytest.mark.parametrize("aggregator", ROBUST, ids=lambda one: one.kind)
def test_nothing_shared_gives_no_step(aggregator: Aggregator) -> None:
    assert aggregator.combine({}, [DeviceUpdate(k, 1, 1, {}) for k in range(5)]) == ({}, {})


def test_krum_needs_two_f_and_three_devices_and_as_many_honest_ones_as_it_takes() -> None:
    assert Krum(num_byzantine=0).least_cohort == 3 and Krum(num_byzantine=2).least_cohort == 7
    assert Krum(num_byzantine=1, num_selected=9).least_cohort == 10


def test_krum_goes_on_with_as_many_faulty_devices_as_fewer_updates_allow() -> None:
    """f = 2 of seven; with five left f = 1, with four f = 0."""
    points = [(0.0,), (1.0,), (3.0,), (7.0,), (100.0,)]
    assert combined(Krum(num_byzantine=2), *points) == combined(Krum(num_byzantine=1), *points) == [1]
    assert combined(Krum(num_byzantine=2), *points[:4]) == combined(Krum(num_byzantine=0), *points[:4])


def test_krum_averages_no_more_updates_than_may_be_honest() -> None:
    """m = 6 of nine; of five with f = 1 the best four, of three all."""
    krum = Krum(num_byzantine=1, num_selected=6)
    assert combined(krum, (0.0,), (1.0,), (3.0,), (7.0,), (100.0,)) == [11 / 4]
    assert combined(krum, (0.0,), (1.0,), (5.0,)) == [2]


@pytest.mark.parametrize("count", [0, 1, 2])
def test_krum_moves_nothing_where_no_neighbours_are_left(count: int) -> None:
    assert combined(Krum(num_byzantine=1), *[(1.0,)] * count) == []
    server = Adam(of=Krum(num_byzantine=1))
    state = server.start({"w": torch.zeros(1)}, 5)
    assert server.combine(state, updates(*[(1.0,)] * count)) == ({}, state)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_medians_and_trimmed_means_take_what_is_left(count: int) -> None:
    points = [(float(k),) for k in range(count)]
    middle = [(count - 1) / 2]
    assert combined(Median(), *points) == combined(TrimmedMean(trim=0.2), *points) == middle
    assert combined(TrimmedMean(trim=0.49), *points) == middle
