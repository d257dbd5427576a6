"""Predict how much devices will work, for schedules that depend on it and for the cost of work that is dropped."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from fibec_ray.learning.federation import Federation
from fibec_ray.learning.job import Job
from fibec_ray.learning.planner import planned
from fibec_ray.preflight.anatomy import anatomy
from fibec_ray.preflight.exchange import Exchange
from fibec_ray.preflight.rehearsal import Rehearsal
from fibec_ray.preflight.samples import Samples
from fibec_ray.preflight.work import Devices
from fibec_ray.schedules.base import Foreseen
from fibec_ray.types import RoundPlan


@dataclass
class Foresight:
    """The work of device-rounds; a `Foresee`. It is that of `fibec-ray plan`, and depends only on job and data."""

    rehearsal: Rehearsal
    samples: Samples

    @staticmethod
    def of(job: Job, federation: Federation) -> Foresight:
        """The predictions for a run."""
        samples = Samples.of(federation)
        return Foresight(Rehearsal(job, anatomy(job, samples.form)), samples)

    def __call__(self, device: int, version: int) -> Foreseen:
        message = self._exchange.message(device, version, len(self.samples.train[device]))
        return Foreseen(self._devices.device_round(device, version).flops, message.down, message.up)

    @cached_property
    def _devices(self) -> Devices:
        return Devices(self.rehearsal, self.samples)

    @cached_property
    def _exchange(self) -> Exchange:
        return Exchange(self.rehearsal)


def plans_of(rehearsal: Rehearsal, samples: Samples) -> list[RoundPlan]:
    """The plans of all rounds of a run."""
    foresee = Foresight(rehearsal, samples) if rehearsal.job.needs_foresight else None
    return planned(rehearsal.job, samples.sizes, foresee)
