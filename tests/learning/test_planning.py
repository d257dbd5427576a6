"""Cohorts and learning rates depend on (seed, round) alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from conftest import classes

from fibec_ray.devices import Simple
from fibec_ray.learning.job import Job, LocalTraining
from fibec_ray.learning.planner import Planner, planned
from fibec_ray.learning.planning import decay, plan_round
from fibec_ray.method import Method
from fibec_ray.models.spec import Backbone


def job(
    seed: int = 0, num_devices: int = 20, rounds: int = 10, method: Any = None, cohort_size: int = 5, **local: Any
) -> Job:
    return Job(
        cohort_size=cohort_size,
        seed=seed,
        rounds=rounds,
        num_devices=num_devices,
        method=Method.model_validate(method or {}),
        backbone=Backbone(),
        local=LocalTraining(**local),
        system=Simple(),
        answers=classes(2),
        eval_batch_size=8,
        max_length=16,
    )


def cohorts(job: Job) -> list[tuple[int, ...]]:
    return [plan.cohort for plan in planned(job)]


def test_a_planner_plans_rounds_in_order_as_each_is_on_its_own() -> None:
    assert planned(job()) == [plan_round(job(), round_) for round_ in range(10)]


def test_a_planner_can_begin_in_the_middle_of_a_run() -> None:
    planner = Planner(job())
    planner.skip_to(7)
    assert planner.plan(7) == plan_round(job(), 7) == planner.plan(7)


def test_a_cohort_is_distinct_devices_of_the_federation() -> None:
    for cohort in cohorts(job()):
        assert len(cohort) == len(set(cohort)) == 5 and set(cohort) <= set(range(20))
        assert all(type(device) is int for device in cohort)


def test_rounds_and_seeds_draw_different_cohorts_and_the_same_again() -> None:
    assert len(set(cohorts(job()))) == 10
    assert cohorts(job()) == cohorts(job()) and not set(cohorts(job())) & set(cohorts(job(seed=1)))


def test_methods_and_training_settings_share_cohorts() -> None:
    """So that runs differ by their method alone."""
    fibecfed = {"curriculum": "fisher", "sharing": "gal", "mask": "fisher_neurons"}
    assert cohorts(job(method=fibecfed, epochs=3, learning_rate=0.1)) == cohorts(job())


def test_every_device_takes_its_turn() -> None:
    """Of 4 devices, 2 a round: in 400 rounds each about 200 times (deviation 10)."""
    counts = Counter(device for cohort in cohorts(job(num_devices=4, cohort_size=2, rounds=400)) for device in cohort)
    assert sorted(counts) == [0, 1, 2, 3] and all(150 < count < 250 for count in counts.values())


def test_a_cohort_of_all_is_all() -> None:
    assert sorted(plan_round(job(cohort_size=20), 3).cohort) == list(range(20))


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [("constant", [1, 1, 1, 1]), ("linear", [1, 0.75, 0.5, 0.25]), ("cosine", [1, 0.8535533905932737, 0.5, 0.1464466])],
)
def test_the_learning_rate_by_hand(schedule: str, factors: list[float]) -> None:
    """T = 4; cosine at a quarter: (1 + sqrt(1/2)) / 2. The last round still learns."""
    planned = [plan_round(job(rounds=4, learning_rate=0.02, schedule=schedule), t) for t in range(4)]
    assert [plan.learning_rate for plan in planned] == pytest.approx([0.02 * factor for factor in factors])
    assert [(plan.round, plan.rounds) for plan in planned] == [(t, 4) for t in range(4)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_decay_starts_at_one_and_never_rises(schedule: str) -> None:
    factors = [decay(schedule, i / 100) for i in range(100)]
    assert factors[0] == 1 and factors == sorted(factors, reverse=True) and factors[-1] > 0
