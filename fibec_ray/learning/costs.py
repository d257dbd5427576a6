"""Simulated time: seconds of a device-round from the flops it did and the bytes it moved, on a modelled device.

Wall time depends on the machine that simulates; this does not, so logs of different fleets can be compared bit by bit.
"""

from __future__ import annotations

import math

from pydantic import BaseModel, Field

from fibec_ray import seeds


class System(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """The modelled devices. Defaults: a phone-class processor on a home connection.

    Device k runs at gflops * e^{spread z_k}, z_k ~ N(0, 1) drawn once from the run's seed; links scale alike.
    """

    gflops: float = Field(100.0, gt=0, description="sustained 1e9 flop/s of a median device")
    up_mbps: float = Field(10.0, gt=0, description="uplink, 1e6 bit/s")
    down_mbps: float = Field(50.0, gt=0, description="downlink, 1e6 bit/s")
    spread: float = Field(0.0, ge=0, le=3, description="sigma of the log-normal speed over devices; 0: all equal")

    def device_seconds(self, seed: int, device: int, flops: float, bytes_down: int, bytes_up: int) -> float:
        """Download, then compute, then upload, in seconds."""
        speed = math.exp(self.spread * seeds.numpy_generator(seed, "system", device).standard_normal())
        seconds = flops / (self.gflops * 1e9) + 8e-6 * (bytes_down / self.down_mbps + bytes_up / self.up_mbps)
        return float(seconds / speed)
