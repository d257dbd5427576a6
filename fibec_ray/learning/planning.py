"""Plans a round before it runs: its cohort, its learning rate, and which devices train together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from fibec_ray import seeds
from fibec_ray.learning.job import Job
from fibec_ray.reports import DeviceReport
from fibec_ray.types import Later, RoundPlan, States


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


class Work(NamedTuple):
    """A lane group at work. round: the one that combines its updates. version: the one whose model it starts from."""

    round: int
    version: int
    devices: Group


def plan_of(job: Job, plan: RoundPlan, version: int, devices: Sequence[int], states: States) -> RoundPlan:
    """The plan that devices follow if they start from the model of `version`. All their work depends on it."""
    own = version == plan.round
    return RoundPlan(
        round=version,
        rounds=plan.rounds,
        cohort=tuple(devices),
        learning_rate=plan.learning_rate if own else learning_rate(job, version),
        states={device: states[device] for device in devices if device in states},
        shares={device: plan.shares[device] for device in devices if device in plan.shares},
    )


def works_of(plan: RoundPlan, num_train: Callable[[Sequence[int]], list[int]], lanes: int) -> list[Work]:
    """The lane groups of a round. Devices of a group start from the same model. num_train: of some devices."""
    versions = sorted({plan.version_of(device) for device in plan.cohort})
    by_version = {v: [device for device in plan.cohort if plan.version_of(device) == v] for v in versions}
    parts = [Later(plan.round, version, tuple(devices)) for version, devices in by_version.items()]
    return works_of_parts(parts, num_train, lanes)


def works_of_parts(parts: Iterable[Later], num_train: Callable[[Sequence[int]], list[int]], lanes: int) -> list[Work]:
    """The lane groups of some parts of cohorts."""
    return [
        Work(part.round, part.version, group)
        for part in parts
        for group in lane_groups(part.devices, num_train(part.devices), lanes)
    ]


def arrived(report: DeviceReport, plan: RoundPlan, fault: str | None = None) -> DeviceReport:
    """A device's report as the round that combined its update logs it. fault: why it did not count."""
    version = plan.version_of(report.device)
    return replace(
        report,
        round=plan.round,
        staleness=plan.round - version,
        sim_time_s=plan.times.get(report.device, report.sim_time_s),
        quarantined=fault,
    )


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
