"""Rounds that end with arrivals: the server combines some updates while other devices go on working."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from fibec_ray.schedules.base import Flight, Step, World

Place = tuple[float, int, int]
"""(arrival, device, number of the start): events are ordered by virtual time, then by device"""


@dataclass
class Arrivals:
    """A virtual clock. `cohort_size` devices work at a time; the server combines every `buffer` updates.

    At one moment all arrivals come first, then the devices that start, which get the newest model. A device may start
    again once its update is combined: until then its own state is not settled. Ours: free places are filled when an
    update arrives, not as soon as some device becomes available.
    """

    world: World
    buffer: int
    max_staleness: int | None
    """older updates do not count; None: all count"""
    _flying: list[tuple[Place, Flight]] = field(default_factory=list)
    """a heap"""
    _ready: list[tuple[Place, Flight]] = field(default_factory=list)
    _dropped: list[Flight] = field(default_factory=list)
    _version: int = 0
    _time_s: float = 0.0
    _started: int = 0

    def steps(self) -> Iterator[Step]:
        """Plan the rounds, one after the other and without end."""
        while True:
            self._start()
            if not self._flying:
                yield self._step()  # with fewer updates: no device is left that could send one
            self._time_s = self._flying[0][0][0] if self._flying else self._time_s
            while self._flying and self._flying[0][0][0] == self._time_s:
                self._land(*heapq.heappop(self._flying))
                if len(self._ready) == self.buffer:
                    yield self._step()

    def _start(self) -> None:
        count, alone = self.world.cohort_size - len(self._flying), not self._flying
        started = self.world.start(self._version, count, self._busy, self._time_s, wait=alone) if count else ()
        for flight in started:
            heapq.heappush(self._flying, ((flight.arrival_s, flight.device, self._started), flight))
            self._started += 1

    @property
    def _busy(self) -> set[int]:
        """Devices at work, devices with an update that is not combined, and those that dropped out of this version."""
        again = (flight for flight in self._dropped if flight.version == self._version)
        return {flight.device for _, flight in (*self._flying, *self._ready)} | {flight.device for flight in again}

    def _land(self, place: Place, flight: Flight) -> None:
        late = self.max_staleness is not None and self._version - flight.version > self.max_staleness
        if late or not flight.reports:
            self._dropped.append(flight)
        else:
            self._ready.append((place, flight))

    def _step(self) -> Step:
        """Combine the updates that are there."""
        cohort = [flight for _, flight in sorted(self._ready, key=_start_of)]
        under_way = [flight for _, flight in sorted(self._flying, key=_start_of)]
        step = Step(cohort, self._dropped, under_way, self._time_s)
        self._version, self._ready, self._dropped = self._version + 1, [], []
        return step


def _start_of(one: tuple[Place, Flight]) -> int:
    return one[0][2]
