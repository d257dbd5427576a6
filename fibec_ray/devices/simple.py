"""Devices that differ by one factor, or not at all."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from fibec_ray import seeds
from fibec_ray.devices.base import Profile, WithEnergy


class Simple(WithEnergy):
    """One log-normal factor scales a device's compute and both of its links.

    Defaults: a phone-class processor on a home connection.
    Device k runs at gflops * e^{spread z_k}, z_k ~ N(0, 1) drawn once from the run's seed; links scale alike.
    """

    kind: Literal["simple"] = "simple"
    gflops: float = Field(100.0, gt=0, description="sustained speed of a median device, 1e9 flop/s")
    up_mbps: float = Field(10.0, gt=0, description="uplink, 1e6 bit/s")
    down_mbps: float = Field(50.0, gt=0, description="downlink, 1e6 bit/s")
    spread: float = Field(0.0, ge=0, le=3, description="sigma of the devices' log-normal speed; 0: all equal")

    def profile(self, seed: int, device: int) -> Profile:
        speed = math.exp(self.spread * seeds.numpy_generator(seed, "system", device).standard_normal())
        return Profile(self.numbers(self.gflops, self.up_mbps, self.down_mbps), speed)
