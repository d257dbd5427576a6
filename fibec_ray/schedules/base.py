"""The base class of all schedules; used as it is, every round waits for its whole cohort.

A schedule plans a run on a virtual clock. How long a device works is predicted, so the order of arrivals is known
before anything is trained, and does not depend on where devices run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

from fibec_ray.parts.part import Part
from fibec_ray.tensors import Tensors


class Foreseen(NamedTuple):
    """The work of a device-round, as far as it is known before it is done."""

    flops: float
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True)
class Flight:
    """A device at work, from its start until its update arrives."""

    device: int
    version: int
    """the round whose model it started from"""
    start_s: float = 0.0
    """virtual time since the first round began"""
    arrival_s: float = 0.0
    share: float = 1.0
    """the part of its batches that it trains on; below 1 it drops out in mid-round"""
    reports: bool = True
    """False: it drops out and sends nothing"""
    work: Foreseen | None = None
    """what it does until it ends or drops out; None if that is not predicted"""

    @property
    def seconds(self) -> float:
        """Virtual seconds of its work."""
        return self.arrival_s - self.start_s


@dataclass(frozen=True)
class Step:
    """What the server combines in a round."""

    cohort: Sequence[Flight]
    """in the order in which their updates are combined"""
    dropped: Sequence[Flight] = ()
    """devices whose work does not count"""
    under_way: Sequence[Flight] = ()
    """devices that are at work when the round ends"""
    time_s: float | None = None
    """virtual time of the end of the round; None: it lasts as long as its slowest device"""


class World(Protocol):
    """What a schedule asks for."""

    @property
    def cohort_size(self) -> int:
        """Devices that train at a time."""

    @property
    def timed(self) -> bool:
        """False if times do not matter and are not predicted: every flight then ends when it starts."""

    def start(
        self, version: int, count: int, busy: Collection[int], time_s: float, wait: bool = True
    ) -> Sequence[Flight]:
        """Let the sampler choose `count` devices that are not busy; they start from round `version`'s model.

        wait: until so many are available; else it chooses among those that are. There may be fewer.
        """


class Schedule(Part):
    """Wait for every device of the cohort (synchronous rounds), as in FedAvg (McMahan et al., AISTATS 2017)."""

    kind: str = "sync"
    needs_times: ClassVar[bool] = False
    """True if the order of arrivals matters"""

    def steps(self, world: World) -> Iterator[Step]:
        """Plan the rounds, one after the other and without end."""
        version, time_s = 0, 0.0
        while True:
            flights = world.start(version, world.cohort_size, (), time_s)
            time_s = max([time_s, *(flight.arrival_s for flight in flights)])
            yield Step(
                cohort=[flight for flight in flights if flight.reports],
                dropped=[flight for flight in flights if not flight.reports],
                time_s=time_s if world.timed else None,
            )
            version += 1

    def unfit_for_cohorts(self, cohort_size: int, num_devices: int) -> str | None:
        """Why a federation of this size cannot have this schedule, starting with the setting; None if it can."""
        return None

    def num_updates(self, cohort_size: int) -> int:
        """The most updates that the server combines in a round."""
        return cohort_size

    def seen(self, delta: Tensors, received: Tensors, current: Tensors, staleness: int) -> Tensors:
        """What the aggregator gets for a delta whose device started `staleness` rounds earlier.

        received: the values that the device started from. current: the server's. Both have the delta's names and
        shapes, and perhaps more names.
        """
        return delta
