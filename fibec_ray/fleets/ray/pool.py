"""Schedule calls on a pool of actors and retry the ones that fail.

A call that is lost with its actor goes to another actor. That is safe because a device-round is a pure function of
stored state: the second try gives the same bits. Ray restarts a lost actor wherever the cluster has room, also on a
node that joined later. Until it answers, the other actors do its work.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray import exceptions as rex

from fibec_ray.errors import FleetError, ServerLostError
from fibec_ray.fleets.ray.failures import LOST, input_lost, outcome, ready
from fibec_ray.fleets.ray.schedule import Backlog, Batch, Call, Ended

POLL_S = 1.0
NODES_S = 5.0
"""Seconds between checks that nodes are alive. Without them a call to an actor on a dead node may wait for long."""


@dataclass
class _Flight:
    call: Call
    refs: list[ray.ObjectRef]


@dataclass
class _Seat:
    """A place in the pool, which one actor after another may fill."""

    actor: Any = None
    """None: not started yet"""
    flights: deque[_Flight] = field(default_factory=deque)
    """its calls, in the order of work"""
    deadline: float = math.inf
    """time limit of its first call"""
    answer: ray.ObjectRef | None = None
    """reply to `ready`, until the actor is known to be healthy"""
    answer_by: float = math.inf
    late: bool = False
    """lost, or too slow to start: other actors may take its calls"""
    gone: bool = False
    remade: int = 0
    """restarts since its last completed call"""
    node: str = ""

    @property
    def well(self) -> bool:
        return self.actor is not None and self.answer is None and not self.gone


@dataclass
class ActorPool:
    """The fleet's device actors. make(i) creates the i-th, again if Ray gave it up.

    call_timeout_s: for each device that a call works for; an actor that takes longer counts as hung, and is restarted.
    note: takes a line about what was lost and what becomes of it. at_once: actors that start at the same time; others
    are made as those answer. kind_of: the i-th actor's, which does calls of that kind. ask: calls what an actor answers
    once it is well, with the id of its node.
    """

    make: Callable[[int], Any]
    size: int
    startup_timeout_s: float
    call_timeout_s: float
    max_retries: int
    note: Callable[[str], None] = lambda text: None
    at_once: int = 1_000_000
    kind_of: Callable[[int], int] = lambda i: 0
    ask: Callable[[Any], ray.ObjectRef] = lambda actor: actor.ready.remote()
    lost: bool = False
    """an actor was lost, so Ray's logs may explain why"""
    _seats: list[_Seat] = field(default_factory=list)
    _backlog: Backlog = field(default_factory=lambda: Backlog([], []))
    _single: Batch | None = None
    """of the newest `run`"""
    _nodes_at: float = 0.0

    def start(self) -> None:
        """Create the actors."""
        self.size, size = 0, self.size
        self.grow(size)

    def grow(self, count: int) -> None:
        """Start more actors; they get calls once they answer."""
        for i in range(self.size, self.size + count):
            self._seats.append(_Seat())
            self._backlog.employ(self.kind_of(i))
        self.size += count
        self._start_some()

    def run(self, calls: Sequence[Call], max_retries: int | None = None, spares: bool = False) -> Iterator[Ended]:
        """Give actors their first calls at once. Iterate to get calls as they end, in any order.

        Iterating raises the error that a call raised. The next `run` drops calls that have not ended by then.
        max_retries: None: the pool's. spares: yields calls that were lost more often than that, with `lost` set.
        Raises FleetError for them otherwise, and if no actor can be had; ServerLostError if what calls were given is
        lost.
        """
        if self._single is not None:
            self.drop(self._single)
        self._single = self.batch(max_retries, spares)
        self.add(self._single, calls)
        return self.results(self._single)

    def batch(self, max_retries: int | None = None, spares: bool = False) -> Batch:
        """An empty batch; `add` gives it calls, while other batches run. Arguments as in `run`."""
        return Batch(self.max_retries if max_retries is None else max_retries, spares)

    def add(self, batch: Batch, calls: Sequence[Call]) -> None:
        """Give actors more calls; those that are free begin at once."""
        for call in calls:
            call.batch = batch
        batch.num_open += len(calls)
        self._backlog.add(calls)
        self._fill()

    def results(self, batch: Batch) -> Iterator[Ended]:
        """The calls of a batch as they end, in any order. Stop at any time; the next call of this goes on from there.

        Raises as `run` does, also for calls of other batches that end meanwhile.
        """
        while batch.ended or batch.num_open:
            while batch.ended:
                yield batch.ended.popleft()
            if batch.num_open:
                self._fill()
                self._land_some()
                self._check_clocks()
                self._check_nodes()

    def drop(self, batch: Batch) -> None:
        """Forget the calls of a batch. Actors finish those that they have begun."""
        batch.dropped, batch.num_open = True, 0
        batch.ended.clear()
        self._backlog.remove(batch)

    def stop(self) -> None:
        """Kill all actors."""
        for seat in self._seats:
            if seat.actor is not None:
                ray.kill(seat.actor)

    def _start_some(self) -> None:
        """Start as many actors as may start at once, in order. An overdue one does not hold up the others."""
        free = self.at_once - sum(seat.answer_by < math.inf for seat in self._seats)
        waiting = [i for i, seat in enumerate(self._seats) if seat.actor is None]
        for i in waiting[: max(0, free)]:
            self._seats[i].actor = self.make(i)
            self._expect(self._seats[i])

    def _like(self, i: int) -> list[_Seat]:
        """The other actors of its kind, which can take its calls."""
        kind = self.kind_of(i)
        return [seat for j, seat in enumerate(self._seats) if j != i and self.kind_of(j) == kind]

    def _fill(self) -> None:
        """Give every healthy actor one call before any gets a second."""
        for i, seat in enumerate(self._seats):
            if seat.late or seat.gone:
                self._backlog.release(i)
        for num_held in (0, 1):
            for i, seat in enumerate(self._seats):
                if len(seat.flights) == num_held and seat.well:
                    call = self._backlog.take(i, num_held)
                    if call is not None:
                        seat.flights.append(_Flight(call, call.submit(seat.actor, call.attempt)))
                        self._watch(seat)

    def _watch(self, seat: _Seat) -> None:
        """Start the time limit of its first call, unless it is running."""
        if seat.flights and seat.deadline == math.inf:
            seat.deadline = time.monotonic() + self.call_timeout_s * seat.flights[0].call.num_devices

    def _land_some(self) -> None:
        """Wait for the next result, or the next sign of life or loss."""
        heads = {seat.flights[0].refs[-1]: i for i, seat in enumerate(self._seats) if seat.flights}
        answers = {seat.answer: i for i, seat in enumerate(self._seats) if seat.answer is not None}
        for ref in ready([*heads, *answers], POLL_S):
            if ref in answers:
                self._arrive(answers[ref], outcome(ref))
            else:
                self._land(heads[ref], ref)

    def _land(self, i: int, ref: ray.ObjectRef) -> None:
        """Take the outcome of its first call. Raises the call's own error, unless its batch was dropped."""
        seat = self._seats[i]
        call, refs = seat.flights[0].call, seat.flights[0].refs
        try:
            value = outcome(ref)
            if input_lost(value):
                raise ServerLostError(f"what the server sent is lost ({type(value).__name__})") from value
        except Exception:
            self._free(seat)
            if call.wanted:
                raise
            return
        if isinstance(value, LOST):
            self._lose(i, value)
            return
        self._free(seat)
        seat.remade = 0
        _end(call, Ended(call.key, refs[:-1], value, call.attempt))

    def _free(self, seat: _Seat) -> None:
        """Take its first call, which has ended, off the actor."""
        seat.flights.popleft()
        seat.deadline = math.inf
        self._watch(seat)

    def _lose(self, i: int, error: Exception) -> None:
        """Handle a lost actor: all its calls go back, only the first had begun. It gets no calls until it answers."""
        self.lost, seat = True, self._seats[i]
        flights, seat.flights, seat.deadline = seat.flights, deque(), math.inf
        seat.late = True
        self.note(f"actor {i} was lost ({type(error).__name__}) with {flights[0].call.what or 'a call'}")
        for flight in reversed(list(flights)[1:]):
            if flight.call.wanted:
                self._backlog.put_back(flight.call)
        flights[0].call.attempt += 1
        if flights[0].call.wanted:
            self._try_again(flights[0].call, error)
        self._expect(seat)

    def _try_again(self, call: Call, error: Exception) -> None:
        assert call.batch is not None
        if call.attempt <= call.batch.max_retries:
            self._backlog.put_back(call)
        elif call.batch.spares:
            _end(call, Ended(call.key, [], None, call.attempt, error))
        else:
            raise FleetError(
                f"{call.what or f'call {call.key}'} was lost {call.attempt} times, last with {type(error).__name__}; "
                "see ray_logs in the run directory (on a cluster, Ray's logs on its nodes) for why its actors die, "
                "then raise fleet.max_retries or lower fleet.num_actors, or set fleet.on_lost=drop"
            ) from error

    def _expect(self, seat: _Seat) -> None:
        """Ask the actor whether it is healthy. Its time limit runs from the first such question."""
        seat.answer = self.ask(seat.actor)
        seat.answer_by = min(seat.answer_by, time.monotonic() + self.startup_timeout_s)

    def _arrive(self, i: int, value: Any) -> None:
        """Handle an actor's answer: it is healthy, or Ray is restarting it, or it was given up and is made again."""
        seat = self._seats[i]
        seat.answer = None
        if isinstance(value, rex.ActorUnavailableError):
            self._expect(seat)
            return
        seat.answer_by = math.inf
        if isinstance(value, LOST):
            self._remake(i, f"actor {i} died {seat.remade + 1} times while starting: {value}")
        else:
            seat.late, seat.node = False, value if isinstance(value, str) else ""
        self._start_some()

    def _remake(self, i: int, complaint: str) -> None:
        """Make the actor again. After several tries give it up, and the fleet too if it was the last one."""
        self.lost, seat = True, self._seats[i]
        seat.late = True
        if seat.remade < self.max_retries:
            seat.remade += 1
            seat.actor = self.make(i)
            self._expect(seat)
        elif all(other.gone for other in self._like(i)):
            raise FleetError(complaint)
        else:
            seat.gone = True
            self.note(f"{complaint}; going on without it")

    def _check_clocks(self) -> None:
        now = time.monotonic()
        for i, seat in enumerate(self._seats):
            if now > seat.answer_by:
                self._overdue(i)
            if now > seat.deadline:
                self._lose(i, TimeoutError("it hangs"))
                ray.kill(seat.actor, no_restart=False)

    def _overdue(self, i: int) -> None:
        """Handle an actor that did not start in time. While others are healthy, it may start later."""
        seat = self._seats[i]
        complaint = (
            f"actor {i} did not start within {self.startup_timeout_s:g} s; the cluster may lack the CPUs, GPUs "
            "or memory that it asks for (see fleet.cpus_per_actor, fleet.gpus_per_actor)"
        )
        if not any(other.well for other in self._like(i)):
            raise FleetError(complaint)
        self.note(f"{complaint}; going on without it until it does")
        seat.late, seat.answer_by = True, math.inf
        if seat.node:  # it was healthy once, and may never answer again
            ray.kill(seat.actor)
            seat.node = ""
            seat.actor = self.make(i)
            seat.answer = self.ask(seat.actor)
        self._start_some()

    def _check_nodes(self) -> None:
        if time.monotonic() < self._nodes_at:
            return
        self._nodes_at = time.monotonic() + NODES_S
        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        for i, seat in enumerate(self._seats):
            if seat.flights and seat.node and seat.node not in alive:
                self._lose(i, rex.NodeDiedError(f"node {seat.node} is dead"))


def _end(call: Call, ended: Ended) -> None:
    if call.batch is not None and call.wanted:
        call.batch.ended.append(ended)
        call.batch.num_open -= 1
