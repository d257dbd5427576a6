"""Getting calls done by actors that may die: who is free, who is suspect, what is tried again; used by RayFleet.

A call that is lost with its actor goes to another one. That is safe because a device-round is a pure function of stored
state: the second run gives the same bits as the first would have.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import exceptions as rex

from fibec_ray.errors import FleetError

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


@dataclass
class Call:
    """submit(actor, attempt) -> the refs of its results; the last one is small and waited for.

    home: the actor that the call belongs to (per_device), or None for any. key: what the caller knows it by.
    """

    key: int
    submit: Callable[[Any, int], list[ray.ObjectRef]]
    home: int | None = None
    attempt: int = 0


@dataclass
class _Flight:
    call: Call
    actor: int
    refs: list[ray.ObjectRef]
    deadline: float


@dataclass
class ActorPool:
    """The fleet's device actors. make(i) creates the i-th, again if Ray gave it up."""

    make: Callable[[int], Any]
    size: int
    startup_timeout_s: float
    call_timeout_s: float
    max_retries: int
    actors: list[Any] = field(default_factory=list)
    _coming: dict[ray.ObjectRef, tuple[int, float]] = field(default_factory=dict)
    """`ready` calls of actors that are starting or suspect, with their deadlines"""
    _remade: dict[int, int] = field(default_factory=dict)

    def start(self) -> None:
        self.actors = [self.make(i) for i in range(self.size)]
        for i in range(self.size):
            self._expect(i)

    def run(self, calls: list[Call]) -> Iterator[tuple[int, list[ray.ObjectRef]]]:
        """Yields (key, refs) as calls end, in any order. An error that a call raised itself is raised here.

        Raises FleetError if a call was lost more than max_retries times, or no actor can be had.
        """
        waiting = deque(calls)
        flying: dict[ray.ObjectRef, _Flight] = {}
        while waiting or flying:
            self._fill(waiting, flying)
            done, _ = ray.wait([*flying, *self._coming], num_returns=1, timeout=POLL_S, fetch_local=False)
            for ref in done:
                if ref in self._coming:
                    self._arrive(ref)
                    continue
                flight = flying.pop(ref)
                if self._ended(ref, flight, waiting):
                    yield flight.call.key, flight.refs
            self._check_deadlines(flying)

    def get(self, ref: ray.ObjectRef) -> Any:
        return get(ref, self.call_timeout_s)

    def stop(self) -> None:
        for actor in self.actors:
            ray.kill(actor)

    def _fill(self, waiting: deque[Call], flying: dict[ray.ObjectRef, _Flight]) -> None:
        busy = {flight.actor for flight in flying.values()} | {i for i, _ in self._coming.values()}
        for i in (i for i in range(self.size) if i not in busy):
            call = next((c for c in waiting if c.home in (None, i)), None)
            if call is None:
                continue
            waiting.remove(call)
            refs = call.submit(self.actors[i], call.attempt)
            flying[refs[-1]] = _Flight(call, i, refs, time.monotonic() + self.call_timeout_s)

    def _ended(self, ref: ray.ObjectRef, flight: _Flight, waiting: deque[Call]) -> bool:
        """True if the call succeeded; otherwise it is queued again, anywhere, and its actor becomes suspect."""
        try:
            get(ref, self.call_timeout_s)
            return True
        except LOST as error:
            call = flight.call
            if call.attempt >= self.max_retries:
                raise FleetError(
                    f"call {call.key} was lost {call.attempt + 1} times, last with {type(error).__name__}; see the Ray "
                    "logs for why its actors die (memory?), then raise fleet.max_retries or lower fleet.num_actors"
                ) from error
            waiting.appendleft(Call(call.key, call.submit, None, call.attempt + 1))
            self._expect(flight.actor)
            return False

    def _expect(self, i: int) -> None:
        if all(i != coming for coming, _ in self._coming.values()):
            self._coming[self.actors[i].ready.remote()] = (i, time.monotonic() + self.startup_timeout_s)

    def _arrive(self, ref: ray.ObjectRef) -> None:
        """An actor answered: it is healthy again, or being restarted by Ray, or given up and made anew."""
        i, _ = self._coming.pop(ref)
        try:
            get(ref, self.startup_timeout_s)
        except rex.ActorUnavailableError:
            self._expect(i)
        except LOST as error:
            self._remade[i] = self._remade.get(i, 0) + 1
            if self._remade[i] > self.max_retries:
                raise FleetError(f"actor {i} died {self._remade[i]} times while starting: {error}") from error
            self.actors[i] = self.make(i)
            self._expect(i)

    def _check_deadlines(self, flying: dict[ray.ObjectRef, _Flight]) -> None:
        now = time.monotonic()
        for i, deadline in self._coming.values():
            if now > deadline:
                raise FleetError(
                    f"actor {i} did not start within {self.startup_timeout_s:g} s; the cluster may lack the CPUs, GPUs "
                    "or memory that it asks for (see fleet.cpus_per_actor, fleet.gpus_per_actor)"
                )
        for flight in flying.values():
            if now > flight.deadline:
                # Its call fails with ActorUnavailableError now, and is run elsewhere.
                flight.deadline = now + self.startup_timeout_s
                ray.kill(self.actors[flight.actor], no_restart=False)


def get(ref: ray.ObjectRef, timeout_s: float) -> Any:
    """ray.get with a timeout, raising the error that the remote call raised rather than Ray's wrapping of it."""
    try:
        return ray.get(ref, timeout=timeout_s)
    except rex.RayTaskError as error:
        if isinstance(error, LOST):
            raise
        raise error.cause from error
