"""A round's updates on their way from device actors to the server, in cohort order, as they arrive; used by RayFleet.

Payloads stay in the object store; the driver holds the refs of those that came before their turn, and no others. (Ray
itself sends a result under 100 kB along with the reply: that copy lives as long as the ref.)
"""

from __future__ import annotations

from typing import Any

import ray

from fibec_ray.fleets.schedule import InOrder
from fibec_ray.types import RoundPlan


class Reduction:
    """The driver's half; the server's is `ServerActor.absorb`, which sums while `feed` brings it more."""

    def __init__(self, server: Any, plan: RoundPlan):
        self._server, self._plan = server, plan
        self._waiting: InOrder[ray.ObjectRef] = InOrder(plan.cohort)
        self._absorbed: ray.ObjectRef | None = None

    def add(self, updates: dict[int, ray.ObjectRef]) -> None:
        """Updates by device, in any order."""
        ready = self._waiting.add(updates)
        if not ready:
            return
        if self._absorbed is None:  # not before: `absorb` occupies the server until the round is over
            self._absorbed = self._server.absorb.remote(self._plan.round, len(self._plan.cohort))
        self._server.feed.remote(ready)

    @property
    def absorbed(self) -> ray.ObjectRef:
        """Ready when the server has taken the whole round; carries its error if it could not."""
        assert self._absorbed is not None, "a round has devices"
        return self._absorbed
