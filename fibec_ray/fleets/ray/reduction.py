"""Send a round's updates from device actors to the server, in cohort order, as they arrive.

Payloads stay in the object store. The driver holds refs only of updates that the server has not taken yet. (Ray sends a
result under 100 kB along with the reply; that copy lives as long as the ref.) Refs are passed to the server as separate
arguments, which Ray fetches for the call: Ray 2.60 never frees refs that travel inside a list. One call of `feed` is
under way at a time, so if one of its updates is lost with a node, none of them was taken and no later one was sent.
A small round whose updates are all there needs no `feed`: they go to `absorb` itself.
"""

from __future__ import annotations

from collections import deque
from itertools import islice, takewhile
from typing import Any

import ray

from fibec_ray.errors import ServerLostError, round_name
from fibec_ray.fleets.ray.actors import AT_ONCE
from fibec_ray.fleets.ray.failures import GET_TIMEOUT_S, LOST, get, input_lost, ready, server_errors
from fibec_ray.types import RoundPlan


class Reduction:
    """The driver's half. The server's half is `ServerActor.absorb`, which sums while `feed` brings more updates."""

    def __init__(self, server: Any, plan: RoundPlan):
        self._server, self._plan = server, plan
        self.awaited = deque(plan.cohort)
        """devices whose update has not reached the server yet"""
        self._have: dict[int, ray.ObjectRef | None] = {}
        """their updates so far; None: this device sends none"""
        self._absorbing: ray.ObjectRef | None = None
        self._feeding: tuple[ray.ObjectRef, int] | None = None
        """the running call of `feed`, and its number of devices"""
        self._whole = False
        """`absorb` was given all updates; it runs only if none of them is lost"""
        self._stuck = False
        """an update was lost; `finish` finds out which others were"""
        self.bad: dict[int, str] = {}
        """device -> why its update was not averaged; known after `finish`"""
        self.digest = ""
        """hash of the server's shared tensors, known after `finish`"""

    def add(self, updates: dict[int, ray.ObjectRef | None]) -> None:
        """Add updates by device, in any order; None for a device that is left out. Raises what the server raised."""
        self._have |= {device: ref for device, ref in updates.items() if device in self.awaited}
        self._advance(0)

    def finish(self, timeout_s: float) -> frozenset[int]:
        """Wait until the server has taken the whole round; raises the error of the step that failed.

        Returns the devices whose update was lost: run them again, `add` their updates, and call this again.
        timeout_s: limit from one step to the next. Raises ServerLostError beyond it.
        """
        while self.awaited and not self._stuck and not self._whole:
            assert self._feeding is not None or self.awaited[0] in self._have, "every device was added"
            self._advance(timeout_s)
        if self._stuck:
            return self._missing(timeout_s)
        if self._absorbing is None:  # a round without devices is a step of the server too
            self._absorbing = self._server.absorb.remote(self._plan)
        there, found = self._ask(self._absorbing, timeout_s)
        if not there:
            self._absorbing, self._whole = None, False
            return self._missing(timeout_s)
        self.bad, self.digest = found
        return frozenset()

    def _advance(self, timeout_s: float) -> None:
        """Wait for the last step, at most timeout_s seconds; then start the next."""
        if self._feeding is not None and not self._fed(timeout_s):
            return
        batch = list(islice(takewhile(self._have.__contains__, self.awaited), AT_ONCE))
        if not batch or self._stuck or self._whole:
            return
        updates = [self._have[device] for device in batch]
        if self._absorbing is None and len(batch) == len(self.awaited):
            self._absorbing, self._whole = self._server.absorb.remote(self._plan, *updates), True
            return
        if self._absorbing is None:  # as late as possible: it occupies the server until the round is over
            self._absorbing = self._server.absorb.remote(self._plan)
        self._feeding = self._server.feed.remote(*updates), len(batch)

    def _fed(self, timeout_s: float) -> bool:
        """True if the running `feed` has ended. `absorb` ends early only if it failed."""
        assert self._feeding is not None and self._absorbing is not None
        (step, count), pending = self._feeding, [self._feeding[0], self._absorbing]
        done = ready(pending, timeout_s)
        if not done and timeout_s:
            raise ServerLostError(f"{round_name(self._plan.round)}: the server did nothing for {timeout_s:g} s")
        if step not in done:
            if done:
                self._ask(self._absorbing)
            return False
        self._feeding = None
        if self._ask(step)[0]:
            for _ in range(count):
                del self._have[self.awaited.popleft()]
        else:
            self._stuck = True
        return True

    def _missing(self, timeout_s: float) -> frozenset[int]:
        """Find lost updates: the server tries to fetch every one."""
        probes = {d: self._server.fetch.remote(ref) for d, ref in self._have.items() if ref is not None}
        lost = frozenset(device for device, probe in probes.items() if not self._ask(probe, timeout_s)[0])
        if not lost:
            raise ServerLostError(f"{round_name(self._plan.round)}: updates do not reach the server")
        for device in lost:
            del self._have[device]
        self._stuck = False
        return lost

    def _ask(self, ref: ray.ObjectRef, timeout_s: float = GET_TIMEOUT_S) -> tuple[bool, Any]:
        """What the server answers; (False, None) if an update given to it is lost. Raises ServerLostError, and the
        server's own errors.
        """
        with server_errors():
            try:
                return True, get(ref, timeout_s)
            except LOST as error:
                if input_lost(error):
                    return False, None
                raise
