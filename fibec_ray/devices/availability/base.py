"""Base of the rules of availability, and the rule without limits. Virtual time is in seconds since the run began."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from pydantic import BaseModel


class Availability(BaseModel, ABC, frozen=True, extra="forbid", allow_inf_nan=False):
    """When a device can be drawn: a pure function of the run's seed, the device and the virtual time."""

    kind: str

    @abstractmethod
    def available(self, seed: int, device: int, time_s: float) -> bool:
        """Whether the device can be drawn at this time."""

    @abstractmethod
    def available_from(self, seed: int, device: int, time_s: float) -> float:
        """The earliest time at or after `time_s` when it can be drawn; inf if it never can again."""

    @property
    def limits_nothing(self) -> bool:
        """True if every device can be drawn at any time."""
        return False

    @property
    def files(self) -> dict[str, str]:
        """The user's files that the rule reads: the key of the setting -> path."""
        return {}

    def unfit_for(self, num_devices: int) -> str | None:
        """Why a federation of this size cannot have this rule, starting with the setting; None if it can.

        Raises ConfigError if a file cannot be read.
        """
        return None


class Always(Availability):
    """Every device can be drawn at any time."""

    kind: Literal["always"] = "always"

    @property
    def limits_nothing(self) -> bool:
        return True

    def available(self, seed: int, device: int, time_s: float) -> bool:
        return True

    def available_from(self, seed: int, device: int, time_s: float) -> float:
        return time_s
