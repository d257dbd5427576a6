"""Train devices on actors: those of the current round, and those of later rounds that can begin already.

Under an asynchronous schedule a device's update may be combined many rounds after the device started. Its training
needs only the model that it started from, so it begins as soon as that model exists, and its result waits here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from functools import partial
from typing import Any

import ray

from fibec_ray.fleets.ray.pool import ActorPool
from fibec_ray.fleets.ray.schedule import Call, Ended
from fibec_ray.learning.job import Job
from fibec_ray.learning.planning import Work, plan_of
from fibec_ray.types import RoundPlan, States

MakeCall = Callable[[Work, Any], Call]
"""(work, submit) -> the call, with its predicted seconds and its place"""


class Trainer:
    """Call `begin` for each round, then `results` for what the round needs. server: the actor that broadcasts.

    The server can be lost; then `stop` this trainer and make another. max_retries, spares: of `ActorPool.run`.
    """

    def __init__(self, pool: ActorPool, server: Any, job: Job, make_call: MakeCall, max_retries: int, spares: bool):
        self.server, self._pool, self._job, self._make_call = server, pool, job, make_call
        self._batch = pool.batch(max_retries, spares)
        self._broadcasts: dict[int, ray.ObjectRef] = {}
        self._begun: set[Work] = set()
        self._ready: dict[Work, Ended] = {}
        self._attempts: dict[Work, int] = {}
        """number of the next attempt"""

    def begin(self, plan: RoundPlan, works: Iterable[Work], states: States) -> None:
        """Start what has not been started. states: of all devices in `works`."""
        todo = [work for work in works if work not in self._begun]
        self._begun |= set(todo)
        for version in sorted({work.version for work in todo} - self._broadcasts.keys()):
            self._broadcasts[version] = self.server.broadcast.remote(version)
        self._submit(plan, todo, states)

    def repeat(self, plan: RoundPlan, work: Work, states: States) -> None:
        """Start it once more, since its updates were lost after they had been computed."""
        self._submit(plan, [work], states)

    def attempts(self, work: Work) -> int:
        """How often it has been started."""
        return self._attempts.get(work, 0)

    def results(self, wanted: Collection[Work]) -> Iterator[tuple[Work, Ended]]:
        """Each of these as it ends."""
        wanted, ended = set(wanted), self._pool.results(self._batch)
        while wanted:
            for work in sorted(wanted & self._ready.keys()):
                wanted.discard(work)
                yield work, self._ready.pop(work)
            if wanted:
                one = next(ended)
                self._ready[one.key] = one
                self._attempts[one.key] = one.attempt + 1

    def end_round(self, plan: RoundPlan) -> None:
        """Forget what later rounds do not need."""
        needed = set(plan.under_way.values())
        self._broadcasts = {version: ref for version, ref in self._broadcasts.items() if version in needed}
        self._begun = {work for work in self._begun if work.round > plan.round}
        self._attempts = {work: count for work, count in self._attempts.items() if work.round > plan.round}

    def stop(self) -> None:
        """Drop all work."""
        self._pool.drop(self._batch)

    def _submit(self, plan: RoundPlan, works: Iterable[Work], states: States) -> None:
        by_version: dict[int, list[Work]] = {}
        for work in works:
            by_version.setdefault(work.version, []).append(work)
        calls = []
        for version, same in by_version.items():
            devices = [device for work in same for device in work.devices]
            sent: Any = plan_of(self._job, plan, version, devices, states)
            if len(same) > 1:  # the plan names all these devices: it travels once, not with each call
                sent = ray.put(sent)
            for work in same:
                submit = partial(_train, sent, self._broadcasts[version], work.devices)
                call = self._make_call(work, submit)
                call.attempt = self._attempts.get(work, 0)
                calls.append(call)
        self._pool.add(self._batch, calls)


def _train(
    plan: Any, broadcast: ray.ObjectRef, devices: tuple[int, ...], actor: Any, attempt: int
) -> list[ray.ObjectRef]:
    count = len(devices) + 1
    refs: list[ray.ObjectRef] = actor.train.options(num_returns=count).remote(plan, devices, broadcast, attempt)
    return refs
