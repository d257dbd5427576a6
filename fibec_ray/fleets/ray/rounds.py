"""One round of the Ray fleet: devices train, the server gets their updates, lost work is repeated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from fibec_ray.errors import FleetError, round_name
from fibec_ray.fleets.ray.reduction import Reduction
from fibec_ray.fleets.ray.trainer import Trainer
from fibec_ray.fleets.settings import FleetConfig, check_quorum
from fibec_ray.learning.planning import Work, arrived
from fibec_ray.reports import DeviceReport
from fibec_ray.types import Progress, RoundPlan, RoundResult, States


class RayRound:
    """One round of training on actors. Devices start when it is made; call `finish` once to get the result.

    All work starts from stored states and a broadcast, so repeating it gives the same bits. Devices of a lane group
    compute side by side, so the whole group is repeated or left out. works: the round's lane groups. ahead: lane groups
    of later rounds that can begin. states: states of the devices of both. absent: devices to leave out from the start.
    """

    def __init__(
        self,
        trainer: Trainer,
        plan: RoundPlan,
        works: Sequence[Work],
        ahead: Sequence[Work],
        states: States,
        config: FleetConfig,
        note: Callable[[str], None],
        progress: Progress,
        absent: Collection[int] = (),
    ):
        self._trainer, self._plan, self._works, self._states = trainer, plan, works, states
        self._config, self._note, self._progress = config, note, progress
        self._reduction = Reduction(trainer.server, plan)
        self._reports: dict[int, DeviceReport] = {}
        self._lost: set[int] = set()
        self._leave_out(absent)
        self._wanted = [work for work in works if not self._lost.issuperset(work.devices)]
        trainer.begin(plan, [*self._wanted, *ahead], states)

    def is_of(self, round_: int, server: Any) -> bool:
        """True if this is round `round_` and its broadcast came from `server`."""
        return self._plan.round == round_ and self._trainer.server is server

    def finish(self) -> RoundResult:
        """Wait until the server has combined the updates of all devices that are not left out."""
        self._take(self._wanted)
        while missing := self._reduction.finish(self._config.device_timeout_s):
            again = [work for work in self._works if missing.intersection(work.devices)]
            again = [work for work in again if self._may_go_again(work)]
            for work in again:
                self._trainer.repeat(self._plan, work, self._states)
            self._take(again)
        self._trainer.end_round(self._plan)
        return self._result()

    def _take(self, wanted: Sequence[Work]) -> None:
        done, total = len(self._plan.cohort) - sum(len(work.devices) for work in wanted), len(self._plan.cohort)
        for work, ended in self._trainer.results(wanted):
            done += len(work.devices)
            self._progress("train", done, total)
            if ended.lost is not None:
                self._leave_out(work.devices, type(ended.lost).__name__)
            else:
                self._reports |= zip(work.devices, ended.value, strict=True)
                updates = zip(work.devices, ended.refs, strict=True)
                self._reduction.add({device: ref for device, ref in updates if device not in self._lost})

    def _may_go_again(self, work: Work) -> bool:
        """True if a group may be repeated. Its updates were computed, and then lost with their node."""
        names, attempts = ", ".join(map(str, work.devices)), self._trainer.attempts(work)
        if attempts <= (0 if self._config.on_lost == "abort" else self._config.max_retries):
            self._note(f"updates were lost with their node: training {names} again")
            return True
        if self._config.on_lost != "drop":
            raise FleetError(
                f"{round_name(self._plan.round)}: updates of {names} were lost {attempts} times "
                "with their nodes; see the Ray logs for why, raise fleet.max_retries, or set "
                "fleet.on_lost=drop"
            )
        self._leave_out(work.devices, "ObjectLostError")
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
        return RoundResult(
            [arrived(self._reports[d], self._plan, bad.get(d)) for d in here], lost, self._reduction.digest
        )
