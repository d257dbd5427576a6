"""The sections of an experiment, beside the method and the backbone, that are one of several kinds."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel

from fibec_ray.data.partition import PARTITIONS
from fibec_ray.devices import AVAILABILITIES, SYSTEMS
from fibec_ray.samplers import SAMPLERS
from fibec_ray.schedules import SCHEDULES

Registry = Mapping[str, type[BaseModel]]

CHOICES: dict[tuple[str, ...], Registry] = {
    ("partition",): PARTITIONS,
    ("sampler",): SAMPLERS,
    ("schedule",): SCHEDULES,
    ("system",): SYSTEMS,
    ("system", "availability"): AVAILABILITIES,
}
"""The keys that lead to a section -> its kinds. Overrides, error messages and the page of settings use it."""
