"""Devices of named classes: phone, edge, silo."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field, model_validator

from fibec_ray import seeds
from fibec_ray.devices.base import Profile, System
from fibec_ray.devices.numbers import CLASSES
from fibec_ray.devices.spreads import factors


class Shares(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False):
    """How often each class is drawn; weights need not sum to 1."""

    phone: float = Field(1.0, ge=0, description="weight of phones")
    edge: float = Field(0.0, ge=0, description="weight of edge devices")
    silo: float = Field(0.0, ge=0, description="weight of silos")


class ByClass(System):
    """Each device is a phone, an edge device or a silo, drawn once from the run's seed.

    docs/devices.md lists the numbers of each class and their sources. Within a class, compute and links have separate
    log-normal factors.
    """

    kind: Literal["classes"] = "classes"
    shares: Shares = Shares()
    compute_spread: float = Field(0.0, ge=0, le=3, description="sigma of log-normal compute speeds within a class")
    up_spread: float = Field(0.0, ge=0, le=3, description="sigma of log-normal uplinks within a class")
    down_spread: float = Field(0.0, ge=0, le=3, description="sigma of log-normal downlinks within a class")
    correlation: float = Field(
        0.0, ge=0, le=1, description="correlation between the logarithms of any two of the three"
    )

    @model_validator(mode="after")
    def _some_class(self) -> ByClass:
        if not any(self._weights.values()):
            raise ValueError("shares are all 0, so no class can be drawn; raise one of them")
        spread = [name for name in ("compute_spread", "up_spread", "down_spread") if getattr(self, name)]
        if self.correlation and len(spread) < 2:
            raise ValueError(
                "correlation has no effect with fewer than two spreads above 0; leave it out, or raise them"
            )
        return self

    @property
    def _weights(self) -> dict[str, float]:
        return {name: getattr(self.shares, name) for name in CLASSES}

    def profile(self, seed: int, device: int) -> Profile:
        name = self._class_of(seed, device)
        spreads = (self.compute_spread, self.up_spread, self.down_spread)
        compute, up, down = factors(seed, device, spreads, self.correlation)
        own = CLASSES[name]
        own = own._replace(gflops=own.gflops * compute, up_mbps=own.up_mbps * up, down_mbps=own.down_mbps * down)
        return Profile(own, speed_class=name)

    def _class_of(self, seed: int, device: int) -> str:
        at = float(seeds.numpy_generator(seed, "device_class", device).random()) * sum(self._weights.values())
        for name, weight in self._weights.items():
            if at < weight:
                return name
            at -= weight
        return max(self._weights, key=self._weights.__getitem__)  # rounding at the upper end
