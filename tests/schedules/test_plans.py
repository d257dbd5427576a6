"""Schedules on a virtual clock, by hand: devices with known seconds, no training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from conftest import classes
from pydantic import ValidationError

from fibec_ray.learning.job import Job, LocalTraining
from fibec_ray.learning.planner import Planner, planned
from fibec_ray.learning.planning import plan_round
from fibec_ray.method import Method
from fibec_ray.models.spec import Backbone
from fibec_ray.schedules.base import Foreseen
from fibec_ray.schedules.buffered import Buffered
from fibec_ray.schedules.deadline import Deadline
from fibec_ray.schedules.one_by_one import Async
from fibec_ray.types import DroppedWork, Later, RoundPlan


def job(schedule: Any, seconds: Sequence[float], cohort_size: int, rounds: int = 6, **system: Any) -> Job:
    """One device for each number of seconds; a device does 1 Gflop/s."""
    return Job(
        seed=0,
        rounds=rounds,
        num_devices=len(seconds),
        cohort_size=cohort_size,
        method=Method(),
        backbone=Backbone(),
        local=LocalTraining(),
        system={"gflops": 1, **system},
        answers=classes(2),
        eval_batch_size=8,
        max_length=16,
        schedule=schedule,
    )


def plans(schedule: Any, seconds: Sequence[float], cohort_size: int, rounds: int = 6, **system: Any) -> list[RoundPlan]:
    made = job(schedule, seconds, cohort_size, rounds, **system)
    return planned(made, foresee=lambda device, version: Foreseen(seconds[device] * 1e9, 0, 0))


def facts(plan: RoundPlan) -> tuple[list[tuple[int, int]], float | None]:
    """(device, staleness) of the cohort, and the seconds of the round."""
    return [(device, plan.round - plan.version_of(device)) for device in plan.cohort], plan.seconds


# --- async and buffered


def test_fedasync_by_hand() -> None:
    """Two devices, both always at work, of 2 and 5 seconds: arrivals at 2, 4, 5, 6, 8, 10 (both, device 0 first)."""
    found = plans({"kind": "async"}, [2.0, 5.0], 2)
    assert [facts(plan) for plan in found] == [
        ([(0, 0)], 2.0),
        ([(0, 0)], 2.0),
        ([(1, 2)], 1.0),  # from the model of round 0, after two other rounds
        ([(0, 1)], 1.0),  # it started before device 1 arrived
        ([(0, 0)], 2.0),
        ([(0, 0)], 2.0),
    ]
    assert found[0].times == {0: 2.0} and found[2].times == {1: 5.0}


def test_what_is_under_way_and_what_can_begin_ahead() -> None:
    """As above. Device 1 works from the model of round 0 until round 2; after that until time 10, in round 6."""
    found = plans({"kind": "async"}, [2.0, 5.0], 2)
    assert [plan.under_way for plan in found[:3]] == [{1: 0}, {1: 0}, {0: 2}]
    assert found[0].ahead == (Later(2, 0, (1,)),) == found[1].ahead
    assert found[2].ahead == (Later(3, 2, (0,)),)
    assert found[-1].under_way == {} and found[-1].ahead == (), "nothing counts after the last round"


def test_fedbuff_by_hand() -> None:
    """Three devices of 1, 2 and 4 seconds, two updates to a round. A device whose update waits does not start again.

    Time 1: device 0 arrives; no other device is free. Time 2: device 1 arrives: round 0. Both start from round 1.
    Time 3: device 0. Time 4: devices 1 and 2 arrive, device 1 first: round 1 with 0 and 1. Device 2 waits.
    Time 5: device 0 arrives: round 2 with device 2, two rounds old.
    """
    found = plans({"kind": "buffered", "buffer": 2}, [1.0, 2.0, 4.0], 3, rounds=3)
    assert [({*cohort}, seconds) for cohort, seconds in map(facts, found)] == [
        ({(0, 0), (1, 0)}, 2.0),
        ({(0, 0), (1, 0)}, 2.0),
        ({(2, 2), (0, 0)}, 1.0),
    ]
    assert found[2].cohort == (2, 0), "in the order of their start"


def test_an_update_that_is_too_old_does_not_count() -> None:
    """Device 1 of the first test is 2 rounds old at time 5."""
    found = plans({"kind": "async", "max_staleness": 1}, [2.0, 5.0], 2, rounds=3)
    assert [plan.cohort for plan in found] == [(0,), (0,), (0,)]
    assert found[2].dropped == (1,) and found[0].under_way == {}, "its training would be in vain"


@pytest.mark.parametrize("schedule", ["buffered", {"kind": "deadline", "over_commit": 1}])
def test_devices_of_equal_speed_make_synchronous_rounds(schedule: Any) -> None:
    found = plans(schedule, [3.0] * 9, 4)
    for plan in found:
        alone = plan_round(job("sync", [3.0] * 9, 4), plan.round)
        assert (plan.cohort, plan.learning_rate, plan.seconds) == (alone.cohort, alone.learning_rate, 3.0)
        assert not (plan.versions or plan.under_way or plan.ahead or plan.dropped)


@pytest.mark.parametrize("schedule", ["async", "buffered", {"kind": "deadline", "late": "next_round"}])
def test_a_device_is_in_one_place_at_a_time(schedule: Any) -> None:
    """Its work begins at the model of a round after the one that combined its last update."""
    seconds = [0.3 * (k + 1) ** 1.5 for k in range(20)]
    last: dict[int, int] = {}
    for plan in plans(schedule, seconds, 5, rounds=60):
        assert len(set(plan.cohort)) == len(plan.cohort)
        for device in plan.cohort:
            assert last.get(device, -1) < plan.version_of(device) <= plan.round
            last[device] = plan.round


@pytest.mark.parametrize("schedule", ["async", "buffered", {"kind": "deadline", "late": "next_round"}])
def test_everything_that_counts_could_have_begun_ahead(schedule: Any) -> None:
    """What a plan says of later rounds comes true, and a device that lags was under way in every round between."""
    found = plans(schedule, [0.3 * (k + 1) ** 1.5 for k in range(20)], 5, rounds=60)
    for plan in found:
        for part in plan.ahead:
            later = found[part.round]
            assert set(part.devices) <= set(later.cohort)
            assert all(later.version_of(device) == part.version <= plan.round for device in part.devices)
        for device in plan.cohort:
            for between in found[plan.version_of(device) : plan.round]:
                assert between.under_way[device] == plan.version_of(device)


def test_a_planner_can_begin_in_the_middle_of_an_asynchronous_run() -> None:
    seconds = [1.0, 2.5, 4.0, 7.0]
    made = job("async", seconds, 3, rounds=20)
    planner = Planner(made, foresee=lambda device, version: Foreseen(seconds[device] * 1e9, 0, 0))
    planner.skip_to(11)
    assert planner.plan(11) == plans("async", seconds, 3, rounds=20)[11]


# --- deadline


def test_the_first_updates_count_and_late_ones_are_dropped() -> None:
    """Four devices start for a cohort of 2, of 1, 2, 3 and 9 seconds: the round ends at 2."""
    found = plans({"kind": "deadline", "over_commit": 2}, [1.0, 2.0, 3.0, 9.0], 2, rounds=1)
    assert set(found[0].cohort) == {0, 1} and set(found[0].dropped) == {2, 3} and found[0].seconds == 2
    work = found[0].dropped_work
    assert work is not None and (work.flops, work.num_bytes) == (12e9, 0), "they finish what is then ignored"
    assert plans("sync", [1.0, 2.0], 2)[0].dropped_work == DroppedWork(0, 0, 0)


@pytest.mark.parametrize("limit", [{"deadline_s": 2.5}, {"quantile": 0.5}])
def test_a_deadline_ends_a_round_with_fewer_updates(limit: dict[str, float]) -> None:
    """Half of the devices take 2 s or less."""
    found = plans({"kind": "deadline", "over_commit": 1, **limit}, [1.0, 2.0, 3.0, 9.0], 4, rounds=1)
    assert set(found[0].cohort) == {0, 1} and found[0].seconds == limit.get("deadline_s", 2.0)


def test_late_work_counts_in_the_round_in_which_it_arrives() -> None:
    """All four start, and rounds last 2 s. Device 2 (3 s) counts in round 1; device 3 (9 s) in round 4."""
    found = plans(
        {"kind": "deadline", "over_commit": 1, "deadline_s": 2, "late": "next_round"}, [1.0, 2.0, 3.0, 9.0], 4
    )
    assert facts(found[1])[0][0] == (2, 1) and set(found[1].cohort) == {0, 1, 2}
    assert (3, 4) in facts(found[4])[0] and not any(plan.dropped for plan in found)


def test_devices_that_never_come_do_not_stop_an_asynchronous_run() -> None:
    found = plans("async", [1.0, 2.0, 3.0], 2, rounds=30, dropout=0.6)
    assert len(found) == 30 and any(plan.dropped for plan in found)


# --- what the aggregator gets


def test_the_weight_of_an_old_update_by_hand() -> None:
    delta = {"w": torch.tensor([4.0])}
    assert Buffered(exponent=0.5).seen(delta, {}, {}, 3)["w"].item() == 2  # (1 + 3)^-0.5
    assert Buffered().seen(delta, {}, {}, 0) is delta
    hinge = Async(mixing=0.8, staleness="hinge", a=10, b=4)
    assert [hinge.weight(tau) for tau in (0, 4, 5)] == pytest.approx([0.8, 0.8, 0.8 / 11])
    assert Async(mixing=0.8).weight(3) == pytest.approx(0.4)
    assert Async(mixing=0.8, staleness="constant").weight(9) == 0.8


def test_fedasync_mixes_models() -> None:
    """The device got 1 and trained to 1 + 4 = 5. The server is at 3: a half of each is 4."""
    rule, received, current = Async(mixing=0.5, staleness="constant"), torch.tensor([1.0]), torch.tensor([3.0])
    frozen = torch.tensor([7.0])  # a tensor of the server that no device trains
    step = rule.seen({"w": torch.tensor([4.0])}, {"w": received}, {"w": current, "frozen": frozen}, 2)
    assert (current + step["w"]).item() == 4 and step.keys() == {"w"}


# --- settings


def test_settings_without_effect_are_rejected() -> None:
    for wrong, message in [
        (lambda: Deadline(deadline_s=3, quantile=0.5), "both set the deadline"),
        (lambda: Deadline(over_commit=1, late="next_round"), "no device is late"),
        (lambda: Async(staleness="constant", a=1), "has no effect"),
        (lambda: Async(b=2), "has no effect"),
    ]:
        with pytest.raises(ValidationError, match=message):
            wrong()
