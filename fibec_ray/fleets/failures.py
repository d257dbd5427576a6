"""Getting calls done by actors that may die: who is free, who is suspect, what is tried again; used by RayFleet.

A call that is lost with its actor goes to another one. That is safe because a device-round is a pure function of stored
state: the second run gives the same bits as the first would have. Results of calls that had ended stay: the driver owns
them, so they outlive the actor that made them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import exceptions as rex

from fibec_ray.errors import FleetError
from fibec_ray.fleets.schedule import Backlog, Call

LOST = (
    rex.RayActorError,
    rex.OutOfMemoryError,
    rex.NodeDiedError,
    rex.WorkerCrashedError,
    rex.ObjectLostError,
    rex.GetTimeoutError,
)
"""What says that an actor, worker, node or object is gone, as against an error that the call itself raised."""
POLL_S = 1.0
GET_TIMEOUT_S = 60
"""For small values that are known to be ready."""


@dataclass
class Ended:
    """A call that succeeded: the refs of its results but the last, and the value of that one."""

    key: int
    refs: list[ray.ObjectRef]
    value: Any


@dataclass
class _Flight:
    call: Call
    refs: list[ray.ObjectRef]
    begun: bool = True
    """False if it stood behind a call that was lost: its own loss then says nothing about it"""


@dataclass
class ActorPool:
    """The fleet's device actors. make(i) creates the i-th, again if Ray gave it up.

    call_timeout_s: for each device that a call works for.
    """

    make: Callable[[int], Any]
    size: int
    startup_timeout_s: float
    call_timeout_s: float
    max_retries: int
    actors: list[Any] = field(default_factory=list)
    _flights: list[deque[_Flight]] = field(default_factory=list)
    """each actor's calls, which it does in this order"""
    _deadlines: dict[int, float] = field(default_factory=dict)
    """of each busy actor's first call"""
    _suspects: set[int] = field(default_factory=set)
    """actors that lost a call and have not been asked yet whether they are `ready`"""
    _coming: dict[ray.ObjectRef, tuple[int, float]] = field(default_factory=dict)
    """`ready` calls of actors that are starting or suspect, with their deadlines"""
    _remade: dict[int, int] = field(default_factory=dict)

    def start(self) -> None:
        self.actors = [self.make(i) for i in range(self.size)]
        for i in range(self.size):
            self._expect(i)

    def run(self, calls: Sequence[Call]) -> Iterator[Ended]:
        """Yields calls as they end, in any order. An error that a call raised itself is raised here.

        Raises FleetError if a call was lost more than max_retries times, or no actor can be had.
        """
        backlog = Backlog(calls, self.size)
        self._forget()
        while backlog or any(self._flights):
            self._fill(backlog)
            heads = {flights[0].refs[-1]: i for i, flights in enumerate(self._flights) if flights}
            done = ready([*heads, *self._coming], POLL_S)
            for ref, value in zip(done, _outcomes(done), strict=True):
                if ref in self._coming:
                    self._arrive(ref, value)
                elif (ended := self._land(heads[ref], value, backlog)) is not None:
                    yield ended
            self._check_deadlines()

    def stop(self) -> None:
        for actor in self.actors:
            ray.kill(actor)

    def _forget(self) -> None:
        """What a run that ended in an error has left."""
        self._flights = [deque() for _ in range(self.size)]
        self._deadlines.clear()
        while self._suspects:
            self._expect(self._suspects.pop())

    def _fill(self, backlog: Backlog) -> None:
        """Everyone who is well gets a call before anyone gets a second one."""
        unwell = self._suspects | {i for i, _ in self._coming.values()}
        for num_held in (0, 1):
            for i in range(self.size):
                if len(self._flights[i]) == num_held and i not in unwell:
                    call = backlog.take(i, num_held)
                    if call is not None:
                        self._flights[i].append(_Flight(call, call.submit(self.actors[i], call.attempt)))
                        self._watch(i)

    def _watch(self, i: int) -> None:
        """Starts the clock of an actor's first call, if it is not running."""
        if self._flights[i] and i not in self._deadlines:
            seconds = self.call_timeout_s * self._flights[i][0].call.num_devices
            self._deadlines[i] = time.monotonic() + seconds

    def _land(self, i: int, value: Any, backlog: Backlog) -> Ended | None:
        """An actor's first call is over. If it is lost it is queued again, anywhere, and its actor becomes suspect."""
        flight = self._flights[i].popleft()
        self._deadlines.pop(i, None)
        if isinstance(value, LOST):
            self._requeue(flight, value, backlog)
            self._suspects.add(i)
            for behind in self._flights[i]:
                behind.begun = False
        if self._flights[i]:
            self._watch(i)
        elif i in self._suspects:
            self._suspects.remove(i)
            self._expect(i)
        return None if isinstance(value, LOST) else Ended(flight.call.key, flight.refs[:-1], value)

    def _requeue(self, flight: _Flight, error: Exception, backlog: Backlog) -> None:
        call = flight.call
        if flight.begun:
            call.attempt += 1
        if call.attempt > self.max_retries:
            raise FleetError(
                f"call {call.key} was lost {call.attempt} times, last with {type(error).__name__}; see the Ray "
                "logs for why its actors die (memory?), then raise fleet.max_retries or lower fleet.num_actors"
            ) from error
        backlog.put_back(call)

    def _expect(self, i: int) -> None:
        if all(i != coming for coming, _ in self._coming.values()):
            self._coming[self.actors[i].ready.remote()] = (i, time.monotonic() + self.startup_timeout_s)

    def _arrive(self, ref: ray.ObjectRef, value: Any) -> None:
        """An actor answered: it is healthy again, or being restarted by Ray, or given up and made anew."""
        i, _ = self._coming.pop(ref)
        if isinstance(value, rex.ActorUnavailableError):
            self._expect(i)
        elif isinstance(value, LOST):
            self._remade[i] = self._remade.get(i, 0) + 1
            if self._remade[i] > self.max_retries:
                raise FleetError(f"actor {i} died {self._remade[i]} times while starting: {value}") from value
            self.actors[i] = self.make(i)
            self._expect(i)

    def _check_deadlines(self) -> None:
        now = time.monotonic()
        for i, deadline in self._coming.values():
            if now > deadline:
                raise FleetError(
                    f"actor {i} did not start within {self.startup_timeout_s:g} s; the cluster may lack the CPUs, GPUs "
                    "or memory that it asks for (see fleet.cpus_per_actor, fleet.gpus_per_actor)"
                )
        for i, deadline in self._deadlines.items():
            if now > deadline:
                # Its call fails with ActorUnavailableError now, and is run elsewhere.
                self._deadlines[i] = now + self.startup_timeout_s
                ray.kill(self.actors[i], no_restart=False)


def get(refs: ray.ObjectRef | list[ray.ObjectRef], timeout_s: float) -> Any:
    """ray.get with a timeout, raising the error that the remote call raised rather than Ray's wrapping of it."""
    try:
        return ray.get(refs, timeout=timeout_s)
    except rex.RayTaskError as error:
        if isinstance(error, LOST):
            raise
        raise error.cause from error


def ready(refs: list[ray.ObjectRef], timeout_s: float) -> list[ray.ObjectRef]:
    """All that are ready once one of them is; none after timeout_s."""
    done, _ = ray.wait(refs, num_returns=1, timeout=timeout_s, fetch_local=False)
    if done:
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
    return done


def _outcomes(refs: list[ray.ObjectRef]) -> list[Any]:
    """Values of ready refs, the error itself for those that are lost; raises an error of the call's own."""
    try:
        return get(refs, GET_TIMEOUT_S) if refs else []
    except LOST:
        return [_outcome(ref) for ref in refs]


def _outcome(ref: ray.ObjectRef) -> Any:
    try:
        return get(ref, GET_TIMEOUT_S)
    except LOST as error:
        return error
