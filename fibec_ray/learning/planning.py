"""Decides a round before it runs: its cohort and its learning rate."""

from __future__ import annotations

import math

from fibec_ray import seeds
from fibec_ray.learning.job import Job
from fibec_ray.types import RoundPlan


def plan_round(job: Job, round_: int) -> RoundPlan:
    """The plan depends on (seed, round) alone: every method and fleet gets the same cohorts."""
    rng = seeds.numpy_generator(job.seed, "cohort", round_)
    cohort = rng.choice(job.num_devices, size=job.cohort_size, replace=False)
    return RoundPlan(round_, job.rounds, tuple(int(device) for device in cohort), learning_rate(job, round_))


def cohorts(job: Job) -> list[tuple[int, ...]]:
    """The devices of each round."""
    return [plan_round(job, round_).cohort for round_ in range(job.rounds)]


def learning_rate(job: Job, round_: int) -> float:
    """Of the local steps of a round."""
    return job.local.learning_rate * decay(job.local.schedule, round_ / job.rounds)


def decay(schedule: str, progress: float) -> float:
    """The factor on the learning rate at progress t / T in [0, 1)."""
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0
