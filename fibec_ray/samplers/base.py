"""The base class of all samplers; used as it is, it draws devices uniformly without replacement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from fibec_ray.parts.part import Part


class Seen(NamedTuple):
    """What the server knows of a device from its newest report."""

    round_: int
    """the round that combined the device's update"""
    num_samples: int
    """samples that the device trained on, repeats included"""
    train_loss: float | None
    """mean over its steps; None if it took none, or if its training diverged"""
    seconds: float
    """virtual seconds of its work"""
    times: int = 1
    """how often the device has reported so far"""


@dataclass(frozen=True)
class Draw:
    """What a sampler chooses from."""

    round_: int
    """the round whose model the devices will start from"""
    count: int
    """devices that the schedule wants now: `cohort_size` under schedule sync"""
    available: Sequence[int]
    """devices that can start now, ascending"""
    num_devices: int
    """devices in the federation"""
    rng: np.random.Generator
    """random numbers for this draw alone"""
    sizes: Sequence[int] = ()
    """training samples of each device"""
    history: Mapping[int, Seen] = field(default_factory=dict)
    """newest report of each device that has reported, up to the round before; empty unless the sampler
    `uses_history`"""


class Sampler(Part):
    """Draw devices uniformly without replacement, as in FedAvg (McMahan et al., AISTATS 2017).

    A draw depends only on its `Draw`, so a run gets the same cohorts on any fleet, after a resume and in its plan.
    """

    kind: str = "uniform"
    uses_history: ClassVar[bool] = False
    """True if `draw` reads `history`. Later cohorts are then unknown until the run reaches them"""
    accounting: ClassVar[Literal["fixed", "poisson"] | None] = "fixed"
    """how devices are drawn, for an accountant of differential privacy. fixed: `count` of all devices. poisson: each
    device independently with probability cohort_size / num_devices. None: in another way. See `law`"""
    has_fixed_size: ClassVar[bool] = True
    """False if a draw may return more or fewer devices than it is asked for"""

    @property
    def law(self) -> Literal["fixed", "poisson"] | None:
        """`accounting`, where the class itself says so: a class derived from it may draw in another way."""
        found: Literal["fixed", "poisson"] | None = vars(type(self)).get("accounting")
        return found

    def draw(self, draw: Draw) -> tuple[int, ...]:
        """The devices that start, in the order in which the server combines their updates.

        At most `count` of those available, without repeats, unless `has_fixed_size` is False.
        """
        count = min(draw.count, len(draw.available))
        chosen = draw.rng.choice(len(draw.available), size=count, replace=False) if count else ()
        return tuple(draw.available[int(i)] for i in chosen)
