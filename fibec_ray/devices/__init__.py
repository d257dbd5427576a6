"""Simulated devices: how fast they compute and send, when they are available, when they drop out, what energy they use.

A new kind of system is one file and one line in `SYSTEMS`; a new rule of availability one line in `AVAILABILITIES`.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, SerializeAsAny

from fibec_ray.devices.availability import AVAILABILITIES
from fibec_ray.devices.base import System
from fibec_ray.devices.choice import chosen
from fibec_ray.devices.classes import ByClass
from fibec_ray.devices.from_file import FromFile
from fibec_ray.devices.lognormal import LogNormal
from fibec_ray.devices.simple import Simple

SYSTEMS: dict[str, type[System]] = {"simple": Simple, "lognormal": LogNormal, "classes": ByClass, "file": FromFile}
"""Kinds of the section `system`. The first is the default."""


def _system(value: Any) -> Any:
    return chosen(SYSTEMS, value)


AnySystem = Annotated[SerializeAsAny[System], BeforeValidator(_system)]
"""The type of a field that holds any kind of system, built from YAML."""

__all__ = ["AVAILABILITIES", "SYSTEMS", "AnySystem", "Simple", "System"]
