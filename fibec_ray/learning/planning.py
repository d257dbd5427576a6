"""Plans a round before it runs: its cohort, its learning rate, and which devices train together."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fibec_ray import seeds
from fibec_ray.learning.job import Job
from fibec_ray.types import RoundPlan


def plan_round(job: Job, round_: int) -> RoundPlan:
    """The plan of one round on its own, with the default schedule and sampler (`Planner` plans runs).

    It depends only on (seed, round), so every method and fleet gets the same cohorts.
    """
    rng = seeds.numpy_generator(job.seed, "cohort", round_)
    cohort = rng.choice(job.num_devices, size=job.cohort_size, replace=False)
    return RoundPlan(round_, job.rounds, tuple(int(device) for device in cohort), learning_rate(job, round_))


def learning_rate(job: Job, round_: int) -> float:
    """The learning rate of local steps in a round."""
    return job.local.learning_rate * decay(job.local.schedule, round_ / job.rounds)


def decay(schedule: str, progress: float) -> float:
    """The factor on the learning rate at progress t / T in [0, 1)."""
    if schedule == "linear":
        return 1.0 - progress
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * progress))
    return 1.0


Group = tuple[int, ...]
"""Devices that train together, the largest first."""


def lane_groups(devices: Sequence[int], num_samples: Sequence[int], lanes: int) -> list[Group]:
    """Split the devices into as few groups of at most `lanes` as possible, of nearly equal size, largest devices first.

    num_samples: of each of `devices`. Devices of similar size are in one group, since a lane that runs out of batches
    waits for the others. The groups depend only on the devices and their sample counts, never on time or actors: the
    bits of a lane's results depend on the batch width, and must be the same wherever and however often the group runs.
    """
    size = dict(zip(devices, num_samples, strict=True))
    ordered = sorted(devices, key=lambda device: (-size[device], device))
    count = math.ceil(len(ordered) / lanes)
    ends = [len(ordered) * i // count for i in range(count + 1)] if count else [0]
    return [tuple(ordered[start:end]) for start, end in zip(ends, ends[1:], strict=False)]
