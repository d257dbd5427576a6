"""The base class of all schedules; used as it is, every round waits for its whole cohort.

A schedule plans a run on a virtual clock. How long a device works is foreseen, so the order of arrivals is known
before anything is trained, and does not depend on where devices run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from fibec_ray.parts.part import Part


@dataclass(frozen=True)
class Flight:
    """A device at work, from its start until its update arrives."""

    device: int
    version: int
    """the round whose model it started from"""
    arrival_s: float = 0.0
    """virtual time since the first round began"""
    share: float = 1.0
    """the part of its batches that it trains on; below 1 it drops out in mid-round"""
    reports: bool = True
    """False: it drops out and sends nothing"""


@dataclass(frozen=True)
class Step:
    """What the server combines in a round."""

    cohort: Sequence[Flight]
    """in the order in which their updates are combined"""
    dropped: Sequence[int] = ()
    """devices that worked, but whose work does not count"""
    under_way: Sequence[Flight] = ()
    """devices that are at work when the round ends"""
    time_s: float | None = None
    """virtual time of the end of the round; None: it lasts as long as its slowest device"""


class World(Protocol):
    """What a schedule asks for."""

    @property
    def cohort_size(self) -> int:
        """Devices that train at a time."""

    def start(self, version: int, count: int, busy: Collection[int], time_s: float) -> Sequence[Flight]:
        """Let the sampler choose `count` devices that are available and not busy; they start from round `version`'s
        model. It may choose fewer.
        """


class Schedule(Part):
    """Wait for every device of the cohort (synchronous rounds), as in FedAvg."""

    kind: str = "sync"

    def steps(self, world: World) -> Iterator[Step]:
        """Plan the rounds, one after the other and without end."""
        version = 0
        while True:
            flights = world.start(version, world.cohort_size, (), 0.0)
            yield Step(
                cohort=[flight for flight in flights if flight.reports],
                dropped=[flight.device for flight in flights if not flight.reports],
            )
            version += 1
