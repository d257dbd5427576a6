"""A round's updates on their way from device actors to the server, in cohort order, as they arrive; used by RayFleet.

Payloads stay in the object store; the driver holds the refs of those that came before their turn, and no others. (Ray
itself sends a result under 100 kB along with the reply: that copy lives as long as the ref.) Refs go to the server as
arguments of their own, which Ray fetches for the call; what a call keeps of refs inside of a list, Ray 2.60 never frees
in the driver.
"""

from __future__ import annotations

from typing import Any

import ray

from fibec_ray.errors import FleetError
from fibec_ray.fleets.failures import get, ready
from fibec_ray.fleets.ray_actors import AT_ONCE
from fibec_ray.fleets.schedule import InOrder
from fibec_ray.types import RoundPlan


class Reduction:
    """The driver's half; the server's is `ServerActor.absorb`, which sums while `feed` brings it more."""

    def __init__(self, server: Any, plan: RoundPlan):
        self._server, self._plan = server, plan
        self._waiting: InOrder[ray.ObjectRef] = InOrder(plan.cohort)
        self._steps: list[ray.ObjectRef] = []
        """`absorb` and the calls of `feed`: what the server has been asked to do"""

    def add(self, updates: dict[int, ray.ObjectRef]) -> None:
        """Updates by device, in any order."""
        next_ones = self._waiting.add(updates)
        if next_ones and not self._steps:  # not before: `absorb` occupies the server until the round is over
            self._steps.append(self._server.absorb.remote(self._plan))
        for start in range(0, len(next_ones), AT_ONCE):
            self._steps.append(self._server.feed.remote(*next_ones[start : start + AT_ONCE]))

    def finish(self, timeout_s: float) -> None:
        """Waits until the server has taken the whole round; raises the error of the step that failed.

        timeout_s: from one step to the next; more is a FleetError.
        """
        pending = self._steps
        while pending:
            done = ready(pending, timeout_s)
            if not done:
                raise FleetError(f"round {self._plan.round}: the server did nothing for {timeout_s:g} s")
            get(done, timeout_s)
            pending = [ref for ref in pending if ref not in set(done)]
