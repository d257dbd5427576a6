"""One round of the Ray fleet: devices train, the server gets their updates, lost work is repeated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ray

from fibec_ray.errors import FleetError, round_name
from fibec_ray.fleets.ray.pool import Ended
from fibec_ray.fleets.ray.reduction import Reduction
from fibec_ray.fleets.settings import FleetConfig, check_quorum
from fibec_ray.learning.planning import Group
from fibec_ray.reports import DeviceReport
from fibec_ray.types import RoundPlan, RoundResult

OnGroups = Callable[..., Iterator[tuple[Group, Ended]]]
"""`RayFleet._on_groups` for one stage and its devices"""


class RayRound:
    """One round of training on actors. Devices start when it is made; call `finish` once to get the result.

    All work starts from stored states and the broadcast, so repeating it gives the same bits. Devices of a lane group
    compute side by side, so the whole group is repeated or left out. absent: devices to leave out from the start.
    """

    def __init__(
        self,
        server: Any,
        plan: RoundPlan,
        groups: Sequence[Group],
        config: FleetConfig,
        note: Callable[[str], None],
        on_groups: OnGroups,
        absent: Collection[int] = (),
    ):
        self._plan, self._groups, self._config, self._note = plan, groups, config, note
        self._server, self._on_groups = server, on_groups
        # The plan names the whole cohort: it travels once, not with each call.
        self._submit = partial(_train, ray.put(plan), server.broadcast.remote(plan.round))
        self._reduction = Reduction(server, plan)
        self._reports: dict[int, DeviceReport] = {}
        self._attempts: dict[Group, int] = {}
        """number of the next attempt, by group"""
        self._lost: set[int] = set()
        self._retries = 0 if config.on_lost == "abort" else config.max_retries
        self._leave_out(absent)
        self._training = self._begin([group for group in groups if not self._lost.issuperset(group)])

    def is_of(self, round_: int, server: Any) -> bool:
        """True if this is round `round_` and its broadcast came from `server`."""
        return self._plan.round == round_ and self._server is server

    def finish(self) -> RoundResult:
        """Wait until the server has combined the updates of all devices that are not left out."""
        self._take(self._training)
        while missing := self._reduction.finish(self._config.device_timeout_s):
            again = [group for group in self._groups if missing.intersection(group)]
            self._take(self._begin([group for group in again if self._may_go_again(group)]))
        return self._result()

    def _begin(self, todo: Sequence[Group]) -> Iterator[tuple[Group, Ended]]:
        policy = {"max_retries": self._retries, "spares": self._config.on_lost == "drop"}
        return self._on_groups(groups=todo, submit=self._submit, attempts=self._attempts, **policy)

    def _take(self, trained: Iterator[tuple[Group, Ended]]) -> None:
        for group, ended in trained:
            self._attempts[group] = ended.attempt + 1
            if ended.lost is not None:
                self._leave_out(group, type(ended.lost).__name__)
            else:
                self._reports |= zip(group, ended.value, strict=True)
                updates = zip(group, ended.refs, strict=True)
                self._reduction.add({device: ref for device, ref in updates if device not in self._lost})

    def _may_go_again(self, group: Group) -> bool:
        """True if a group may be repeated. Its updates were computed, and then lost with their node."""
        names = ", ".join(map(str, group))
        if self._attempts[group] <= self._retries:
            self._note(f"updates were lost with their node: training {names} again")
            return True
        if self._config.on_lost != "drop":
            raise FleetError(
                f"{round_name(self._plan.round)}: updates of {names} were lost {self._attempts[group]} times "
                "with their nodes; see the Ray logs for why, raise fleet.max_retries, or set "
                "fleet.on_lost=drop"
            )
        self._leave_out(group, "ObjectLostError")
        return False

    def _leave_out(self, devices: Collection[int], reason: str = "") -> None:
        """Leave out those of the devices whose update the server has not taken yet."""
        devices = [device for device in devices if device in self._reduction.awaited]
        if reason:
            self._note(f"{round_name(self._plan.round)}: goes on without {', '.join(map(str, devices))} ({reason})")
        self._lost |= set(devices)
        self._reduction.add(dict.fromkeys(devices))

    def _result(self) -> RoundResult:
        cohort, bad = self._plan.cohort, self._reduction.bad
        lost = tuple(device for device in cohort if device in self._lost)
        check_quorum(self._config, self._plan, lost, bad)
        here = [device for device in cohort if device not in self._lost]
        return RoundResult([replace(self._reports[d], quarantined=bad.get(d)) for d in here], lost)


def _train(
    plan: ray.ObjectRef, broadcast: ray.ObjectRef, devices: Group, actor: Any, attempt: int
) -> list[ray.ObjectRef]:
    count = len(devices) + 1
    refs: list[ray.ObjectRef] = actor.train.options(num_returns=count).remote(plan, devices, broadcast, attempt)
    return refs
