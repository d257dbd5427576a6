"""Which call goes to whom, without Ray."""

from __future__ import annotations

import random
from typing import Any

import pytest

from fibec_ray.fleets.ray.schedule import Backlog, Call, CostModel
from fibec_ray.reports import DeviceReport


def nothing(actor: Any, attempt: int) -> list[Any]:
    return []


def calls_of(*seconds: float) -> list[Call]:
    return [Call(key, nothing, cost) for key, cost in enumerate(seconds)]


def reports(seconds: dict[int, float]) -> list[DeviceReport]:
    """num_samples -> compute_s."""
    return [DeviceReport(0, 0, num_samples, compute_s=cost) for num_samples, cost in seconds.items()]


# --- the backlog


def test_actors_do_calls_of_their_kind_alone() -> None:
    calls = [Call(i, nothing, seconds=i, kind=i % 2) for i in range(4)]
    backlog = Backlog(calls, kinds=[0, 1, 1])
    assert [backlog.take(actor, 0).key for actor in (1, 0, 2)] == [3, 2, 1]  # type: ignore[union-attr]
    assert backlog.take(1, 0) is None and backlog
    backlog.put_back(calls[3])
    assert backlog.take(0, 0) is calls[0] and backlog.take(2, 0) is calls[3] and not backlog


def test_the_longest_call_goes_first() -> None:
    backlog = Backlog(calls_of(1, 5, 3), kinds=[0])
    taken = [backlog.take(0, 0) for _ in range(3)]
    assert [call.key for call in taken if call] == [1, 2, 0] and not backlog


def test_a_second_call_is_held_while_many_wait_and_the_last_ones_go_to_whoever_is_free() -> None:
    backlog = Backlog(calls_of(*[1] * 6), kinds=[0, 0])
    for actor in (0, 1, 0):
        assert backlog.take(actor, num_held=0 if actor else 1)
    assert backlog.take(1, num_held=1) and backlog.take(0, num_held=1) is None, "two are left for two actors"
    assert backlog.take(0, num_held=2) is None
    assert backlog.take(1, num_held=0) and backlog.take(1, num_held=0) and not backlog


def test_calls_with_a_home_wait_for_it() -> None:
    backlog = Backlog([Call(0, nothing, home=1), Call(1, nothing, home=0)], kinds=[0, 0, 0])
    assert backlog.take(2, 0) is None
    taken = backlog.take(1, 0)
    assert taken is not None and taken.key == 0 and backlog.take(1, 0) is None
    backlog.put_back(taken)
    again = backlog.take(0, 0), backlog.take(0, 0)
    assert [call.key for call in again if call] == [1, 0], "its own first, then what was lost elsewhere"


def makespan(costs: list[float], speeds: list[float], second: bool = True) -> float:
    """Seconds until actors of these speeds have done calls of these costs, as the pool hands them out."""
    backlog = Backlog(calls_of(*costs), [0] * len(speeds))
    queues: list[list[Call]] = [[] for _ in speeds]
    ends = [0.0] * len(speeds)
    while backlog or any(queues):
        for num_held in (0, 1) if second else (0,):
            for i, queue in enumerate(queues):
                if len(queue) == num_held and (call := backlog.take(i, num_held)):
                    queue.append(call)
        i = min(
            (i for i, queue in enumerate(queues) if queue), key=lambda i: ends[i] + queues[i][0].seconds / speeds[i]
        )
        ends[i] += queues[i].pop(0).seconds / speeds[i]
        idle = [j for j, queue in enumerate(queues) if not queue]
        for j in idle:
            ends[j] = max(ends[j], ends[i])
    return max(ends)


@pytest.mark.parametrize("speeds", [[1.0, 1.0], [1.0, 0.5], [1.0, 1.0, 1.0, 0.25]])
def test_a_slow_actor_holds_nothing_back(speeds: list[float]) -> None:
    """Within 10 % of work / speed, and of what it would be with one call at a time."""
    rng = random.Random(1)
    costs = [rng.expovariate(1) + 0.2 for _ in range(100)]
    best = sum(costs) / sum(speeds)
    assert makespan(costs, speeds) < 1.1 * best
    assert makespan(costs, speeds) < 1.1 * makespan(costs, speeds, second=False)


# --- what a device costs


def test_before_any_round_cost_is_the_number_of_samples() -> None:
    assert CostModel().seconds([3, 4]) == 7


def test_the_line_through_the_reports() -> None:
    """2 + 0.5 n seconds."""
    model = CostModel()
    model.learn(reports({2: 3.0, 10: 7.0, 20: 12.0}))
    assert model.seconds([4]) == pytest.approx(4) and model.seconds([4, 8]) == pytest.approx(10)


def test_later_rounds_weigh_more() -> None:
    """Twice as slow from some round on: ten rounds later the old ones hardly show."""
    model = CostModel()
    for factor in [1] * 10 + [2] * 10:
        model.learn(reports({2: 3.0 * factor, 10: 7.0 * factor}))
    assert model.seconds([4]) == pytest.approx(8, rel=0.01)


@pytest.mark.parametrize("seen", [{5: 1.0}, {5: 4.0, 10: 1.0}, {1: 0.5, 10: 10.0}], ids=["one", "falling", "a < 0"])
def test_more_samples_never_cost_less(seen: dict[int, float]) -> None:
    model = CostModel()
    model.learn(reports(seen))
    assert 0 < model.seconds([1]) < model.seconds([2]) < model.seconds([100])
    num, total = sum(n * s for n, s in seen.items()), sum(n * n for n in seen)
    assert model.seconds([3]) == pytest.approx(3 * num / total), "in proportion, then"
