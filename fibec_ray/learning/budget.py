"""The privacy budget of a run: how often it uses the data of a device, and epsilon after each round."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import Any

from fibec_ray.learning.job import Job
from fibec_ray.learning.planner import planned
from fibec_ray.parts.privacy.base import Exposure, Sampling
from fibec_ray.schedules.base import Schedule


def sampling_of(settings: Any) -> Sampling | None:
    """How a job or an experiment draws its cohorts; None if no accountant here covers these draws."""
    waits = settings.schedule == Schedule()
    law: Sampling | None = settings.sampler.law
    return law if waits and settings.system.is_always_available else None


class Budget:
    """What the method's privacy rule guarantees in a job. It follows from the settings and the seed alone."""

    def __init__(self, job: Job):
        self._job, self._privacy = job, job.method.privacy

    @property
    def exposure(self) -> Exposure:
        """How often the run uses the data of a device."""
        job = self._job
        return Exposure(job.rounds, job.num_devices, job.cohort_size, sampling_of(job), self._visits)

    @property
    def guarantee(self) -> str:
        """The guarantee in words; '' without one."""
        return self._privacy.guarantee(self.exposure)

    def epsilon_after(self, round_: int) -> float | None:
        """Epsilon of all rounds up to this one; None without a guarantee, and in the setup phase."""
        return self._privacy.epsilon(self.exposure, round_ + 1)

    def _visits(self, rounds: int) -> int:
        """At most one participation in each round, where cohorts are not known before the run."""
        most = self._most_participations[rounds] if sampling_of(self._job) else rounds
        return self._job.local.epochs * most

    @cached_property
    def _most_participations(self) -> list[int]:
        """Of any one device, after 0, 1, 2 ... rounds."""
        counts, most = Counter[int](), [0]
        for plan in planned(self._job):
            counts.update(plan.cohort)
            most.append(max([most[-1], *(counts[device] for device in plan.cohort)]))
        return most


def calibrated(job: Job) -> Job:
    """The job with the noise that its method's target epsilon asks for."""
    privacy = job.method.privacy.calibrated(Budget(job).exposure)
    if privacy is job.method.privacy:
        return job
    return job.model_copy(update={"method": job.method.model_copy(update={"privacy": privacy})})
