"""Devices with separate log-normal speeds of compute, uplink and downlink."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fibec_ray.devices.base import Profile, WithEnergy
from fibec_ray.devices.numbers import PHONE
from fibec_ray.devices.spreads import factors


class LogNormal(WithEnergy):
    """Separate log-normal factors on compute, uplink and downlink, which may be correlated.

    Device k computes at gflops * e^{compute_spread z_k}, and its links scale with factors of their own. Medians are
    those of a phone (docs/devices.md). FedScale draws the time of a sample from a log-normal with sigma 0.6. Ours: the
    same sigma for links, and the correlation.
    """

    kind: Literal["lognormal"] = "lognormal"
    gflops: float = Field(PHONE.gflops, gt=0, description="sustained speed of a median device, 1e9 flop/s")
    up_mbps: float = Field(PHONE.up_mbps, gt=0, description="median uplink, 1e6 bit/s")
    down_mbps: float = Field(PHONE.down_mbps, gt=0, description="median downlink, 1e6 bit/s")
    compute_spread: float = Field(0.6, ge=0, le=3, description="sigma of the devices' log-normal compute speed")
    up_spread: float = Field(0.6, ge=0, le=3, description="sigma of their log-normal uplinks")
    down_spread: float = Field(0.6, ge=0, le=3, description="sigma of their log-normal downlinks")
    correlation: float = Field(
        0.5, ge=0, le=1, description="correlation between the logarithms of any two of the three"
    )

    def profile(self, seed: int, device: int) -> Profile:
        spreads = (self.compute_spread, self.up_spread, self.down_spread)
        compute, up, down = factors(seed, device, spreads, self.correlation)
        return Profile(self.numbers(self.gflops * compute, self.up_mbps * up, self.down_mbps * down))
