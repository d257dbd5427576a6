"""The base class of all privacy rules. The class itself protects nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, Self

import torch

from fibec_ray.parts.part import Part
from fibec_ray.tensors import Tensors
from fibec_ray.types import DeviceUpdate, Extra

Sampling = Literal["fixed", "poisson"]
"""How cohorts are drawn. fixed: `cohort_size` devices, uniformly without replacement. poisson: each device
independently with probability cohort_size / num_devices."""


@dataclass(frozen=True)
class Exposure:
    """How often a run uses the data of a device: what an accountant needs to know."""

    rounds: int
    num_devices: int
    cohort_size: int
    """expected"""
    sampling: Sampling | None
    """None: drawn in another way, so no accountant here applies to devices"""
    visits: Callable[[int], int]
    """rounds -> local epochs of the device that has trained most, after so many rounds"""


@dataclass(frozen=True)
class StepGuard:
    """Protection of each local training step: the gradient of each sample is clipped, and their sum gets noise."""

    clip: float
    """largest L2 norm of a sample's gradient"""
    noise: float
    """standard deviation of the noise on the sum, in units of `clip`"""


class Privacy(Part):
    """Bound the influence of one device, or of one sample, on what leaves the device or the server.

    Device half: `guard`, `protect`. Server half: `start`, `sent`, `expected_extras`, `release`. Accounting:
    `calibrated`, `epsilon`, `guarantee`. By default nothing is protected.
    """

    kind: str = "none"

    def guard(self) -> StepGuard | None:
        """How each local training step is protected; None: not at all."""
        return None

    def protect(self, delta: Tensors, sent: Tensors, cohort_size: int, rng: torch.Generator) -> tuple[Tensors, Tensors]:
        """The delta to send, before the uplink encodes it, and extras for `release`. sent: what `sent` returned."""
        return delta, {}

    def start(self) -> Tensors:
        """The server's state before round 1."""
        return {}

    def sent(self, state: Tensors) -> Tensors:
        """What devices receive in a round, beside the shared tensors."""
        return {}

    def expected_extras(self) -> Mapping[str, Extra]:
        """The extras that `protect` adds to an update, by name."""
        return {}

    def release(
        self, state: Tensors, updates: Iterable[DeviceUpdate], like: Tensors, cohort_size: int, rng: torch.Generator
    ) -> tuple[Iterable[DeviceUpdate], Tensors]:
        """What the aggregator sees of a round's updates, and the new state. Also called in a round without updates.

        like: the tensors that the round trains. cohort_size: updates that the schedule expects in a round.
        """
        return updates, state

    def calibrated(self, exposure: Exposure) -> Self:
        """A copy with the noise that its target asks for. Raises ConfigError if the target cannot be accounted for."""
        return self

    def epsilon(self, exposure: Exposure, rounds: int) -> float | None:
        """Epsilon after so many rounds; None without a guarantee. The part must be `calibrated`."""
        return None

    def guarantee(self, exposure: Exposure) -> str:
        """Who is protected, with which delta, and what the accountant assumes; '' without a guarantee."""
        return ""
