"""When devices can be drawn for a round. A new rule is one file here and one line in `AVAILABILITIES`."""

from __future__ import annotations

from fibec_ray.devices.availability.base import Always, Availability
from fibec_ray.devices.availability.markov import Markov
from fibec_ray.devices.availability.windows import Windows

AVAILABILITIES: dict[str, type[Availability]] = {"always": Always, "markov": Markov, "windows": Windows}
"""Kinds of `system.availability`. The first is the default."""
