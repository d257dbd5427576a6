"""Base of the kinds of simulated devices. Called by the round log (times, energy) and by planners (who, when).

Every value is a pure function of the run's seed, the device, and the round or the virtual time. No value depends on the
machine that simulates, so logs of different fleets can be compared bit for bit.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field, SerializeAsAny, model_validator

from fibec_ray import seeds
from fibec_ray.devices.availability import AVAILABILITIES
from fibec_ray.devices.availability.base import Always, Availability
from fibec_ray.devices.choice import chosen
from fibec_ray.devices.numbers import PHONE, Numbers
from fibec_ray.errors import ConfigError


class Profile(NamedTuple):
    """One device."""

    numbers: Numbers
    """its speed, links and energy"""
    speed: float = 1.0
    """a factor on its compute and both of its links"""
    speed_class: str | None = None
    """the group that reports list it under; None: by its speed among all devices"""


def _availability(value: Any) -> Any:
    return chosen(AVAILABILITIES, value)


class System(BaseModel, ABC, frozen=True, extra="forbid", allow_inf_nan=False):
    """Simulated devices: seconds and joules of a device-round, from its flops and the bytes it moves."""

    kind: str
    jitter: float = Field(
        0.0,
        ge=0,
        le=3,
        description="sigma of log-normal factors on a device's compute and on each of its links, drawn anew in every "
        "round; 0: a device is as fast in every round",
    )
    dropout: float = Field(
        0.0, ge=0, lt=1, description="probability that a drawn device drops out in the middle of the round"
    )
    partial_work: bool = Field(
        False,
        description="a device that drops out has trained on some of its batches and still sends its update; false: "
        "it sends nothing and its state stays as it was",
    )
    availability: Annotated[SerializeAsAny[Availability], BeforeValidator(_availability)] = Field(
        Always(), description="when devices can be drawn: always, or a kind below with its settings"
    )

    @model_validator(mode="after")
    def _partial_work_needs_dropout(self) -> System:
        if self.partial_work and not self.dropout:
            raise ValueError("partial_work has no effect with dropout: 0; leave it out, or raise dropout")
        return self

    @abstractmethod
    def profile(self, seed: int, device: int) -> Profile:
        """The device's own numbers, the same in every round."""

    @property
    def files(self) -> dict[str, str]:
        """The user's files that this section reads: the keys of the setting, joined by dots -> path."""
        return self.availability.files

    @property
    def is_always_available(self) -> bool:
        """True if every device can be drawn at any time and finishes its round."""
        return self.availability.limits_nothing and not self.dropout

    def unfit_for(self, num_devices: int) -> str | None:
        """Why a federation of this size cannot have this system, starting with the setting; None if it can.

        Raises ConfigError if a file cannot be read.
        """
        return self.availability.unfit_for(num_devices)

    def device_seconds(
        self, seed: int, device: int, round_: int, flops: float, bytes_down: int, bytes_up: int
    ) -> float:
        """Seconds for download, then compute, then upload. round_: -1 is the setup phase."""
        (own, speed, _), (compute, up, down) = self.profile(seed, device), self._jitter(seed, device, round_)
        transfer = 8e-6 * (bytes_down / (own.down_mbps * down) + bytes_up / (own.up_mbps * up))
        return float((flops / (own.gflops * compute * 1e9) + transfer) / speed)

    def energy_j(self, seed: int, device: int, flops: float, bytes_down: int, bytes_up: int) -> float:
        """Joules for download, compute and upload. They depend on the amount of work, not on its speed.

        Ours: idle power and the server's energy are left out.
        """
        own = self.profile(seed, device).numbers
        transfer = 1e-6 * (bytes_down * own.down_j_per_mb + bytes_up * own.up_j_per_mb)
        return float(flops / (own.gflops_per_joule * 1e9) + transfer)

    def share_done(self, seed: int, device: int, round_: int) -> float:
        """The share of a round's work that the device does before it drops out; 1.0: it does not drop out.

        Ours: the share is uniform in (0, 1).
        """
        if not self.dropout:
            return 1.0
        happens, share = seeds.numpy_generator(seed, "drop_out", device, round_).random(2)
        return float(share) if happens < self.dropout else 1.0

    def available(self, seed: int, device: int, time_s: float) -> bool:
        """Whether the device can be drawn at this virtual time. Once drawn, it stays for its round."""
        return self.availability.available(seed, device, time_s)

    def available_from(self, seed: int, device: int, time_s: float) -> float:
        """The earliest virtual time at or after `time_s` when the device can be drawn; inf if it never can again."""
        return self.availability.available_from(seed, device, time_s)

    def gather(self, seed: int, devices: Sequence[int], count: int, time_s: float) -> tuple[float, Sequence[int]]:
        """The earliest time at or after `time_s` at which `count` of the devices can be drawn, and those that can.

        All of them if there are fewer. Raises ConfigError if so many are never there at once.
        """
        rule, needed = self.availability, min(count, len(devices))
        if not needed or rule.limits_nothing:
            return time_s, devices
        until = time_s + LONGEST_WAIT_S
        while time_s < until:
            starts = {device: rule.available_from(seed, device, time_s) for device in devices}
            if (earliest := sorted(starts.values())[needed - 1]) == time_s:
                return time_s, [device for device in devices if starts[device] == time_s]
            time_s = earliest
        raise ConfigError(
            f"system.availability: {needed} of {len(devices)} devices are never available at once in the year from "
            f"{until - LONGEST_WAIT_S:.0f} s on; lower cohort_size, or change system.availability"
        )

    def speed_classes(self, seed: int, devices: Iterable[int]) -> dict[int, str]:
        """The class of each device by which reports group scores; empty if all devices are alike.

        Devices without a class of their own are slow, medium or fast: thirds by compute speed.
        """
        profiles = {device: self.profile(seed, device) for device in devices}
        if all(each.speed_class is not None for each in profiles.values()):
            return {device: str(each.speed_class) for device, each in profiles.items()}
        speeds = {device: each.numbers.gflops * each.speed for device, each in profiles.items()}
        if len(set(speeds.values())) < 2:
            return {}
        ordered = sorted(speeds, key=lambda device: (speeds[device], device))
        return {device: THIRDS[3 * i // len(ordered)] for i, device in enumerate(ordered)}

    def _jitter(self, seed: int, device: int, round_: int) -> tuple[float, float, float]:
        """Factors on compute, uplink and downlink in a round."""
        if not self.jitter:
            return 1.0, 1.0, 1.0
        draws = seeds.numpy_generator(seed, "jitter", device, round_).standard_normal(3)
        compute, up, down = (math.exp(self.jitter * draw) for draw in draws)
        return compute, up, down


THIRDS = ("slow", "medium", "fast")
LONGEST_WAIT_S = 366 * 86_400.0
"""Virtual seconds that a server waits for devices."""


class WithEnergy(System):
    """A system whose devices all use the same energy for the same work. The defaults are those of a phone."""

    gflops_per_joule: float = Field(PHONE.gflops_per_joule, gt=0, description="1e9 floating point operations per joule")
    up_j_per_mb: float = Field(PHONE.up_j_per_mb, ge=0, description="joules to send 1e6 bytes")
    down_j_per_mb: float = Field(PHONE.down_j_per_mb, ge=0, description="joules to receive 1e6 bytes")

    def numbers(self, gflops: float, up_mbps: float, down_mbps: float) -> Numbers:
        """A device with these speeds and the section's energy."""
        return Numbers(gflops, up_mbps, down_mbps, self.gflops_per_joule, self.up_j_per_mb, self.down_j_per_mb)
