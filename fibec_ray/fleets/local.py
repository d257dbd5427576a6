"""The in-process fleet: every device on one model in this process. The reference that the Ray fleet must equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from fibec_ray.checkpoints.checkpoint import read_state, write_state
from fibec_ray.fleets.settings import check_quorum
from fibec_ray.fleets.site import Site, assemble_evaluation
from fibec_ray.learning.evaluation import evaluation_chunks
from fibec_ray.learning.faults import sent_by
from fibec_ray.learning.federation import Federation
from fibec_ray.learning.group_worker import GroupWorker
from fibec_ray.learning.planning import Group, lane_groups
from fibec_ray.learning.server import Server
from fibec_ray.learning.store import AcceptedStates
from fibec_ray.parts.sharing.base import Selection
from fibec_ray.reports import DeviceReport
from fibec_ray.tensors import Tensors
from fibec_ray.types import (
    Broadcast,
    EvaluationResult,
    OpenResult,
    Predictions,
    Progress,
    RoundPlan,
    RoundResult,
    States,
)

T = TypeVar("T")


class LocalFleet:
    lanes: int
    device = ""
    holding: tuple[str, str] | None = None
    base: str

    def __init__(self, site: Site, progress: Progress = lambda stage, done, total: None):
        self._site, self._progress = site, progress
        self._accepted = AcceptedStates()
        self._worker: GroupWorker
        self._server: Server
        self._federation: Federation
        self._opened: OpenResult

    def open(self) -> OpenResult:
        job = self._site.job
        self._start()
        devices = range(job.num_devices if job.method.opens else 0)
        opened = self._by_group("open", devices, self._federation.num_train(devices), self._worker.open_group)
        selection = self._server.open([layer_report for layer_report, _ in opened])
        reports = [report for _, report in opened]
        self._accepted.accept(reports)
        return self._result(selection, reports)

    @property
    def states(self) -> States:
        return self._accepted.all

    def run_round(self, plan: RoundPlan) -> RoundResult:
        broadcast = self._server.broadcast(plan.round)
        plan = replace(plan, states=self._accepted.of(plan.cohort))
        train = partial(self._worker.train_group, plan, broadcast=broadcast)
        trained = self._by_group("train", plan.cohort, self._federation.num_train(plan.cohort), train)
        updates = [sent_by(device, update) for device, (update, _) in zip(plan.cohort, trained, strict=True)]
        bad = self._server.absorb(plan.round, updates)
        check_quorum(self._site.fleet, plan, (), bad)
        reports = [replace(report, quarantined=bad.get(report.device)) for _, report in trained]
        self._accepted.accept(reports)
        return RoundResult(reports)

    def evaluate(self, round_: int) -> EvaluationResult:
        batch_size = self._site.job.eval_batch_size
        broadcast = self._server.broadcast(round_ + 1)
        chunks = evaluation_chunks(self._federation.test_set(), batch_size)
        parts = self._worker.evaluate_shared(chunks, broadcast)
        personal = self._evaluate_personal(broadcast) if self._opened.keeps_personal else None
        return assemble_evaluation(self._federation, batch_size, parts, personal)

    def adapter(self) -> Tensors:
        return self._server.adapter()

    def close(self) -> None:
        """Nothing to stop."""

    def restore(self, path: Path, states: States) -> OpenResult:
        self._start()
        self._accepted.reset(states)
        return self._result(self._server.restore(read_state(path)), [])

    def save(self, path: Path) -> Callable[[], str]:
        return partial(write_state, path, self._server.state())

    def digest(self) -> str:
        return self._server.digest()

    def _start(self) -> None:
        self._federation = self._site.federation()
        self.base = self._site.base_fingerprint()
        self._worker = self._site.worker()
        self.device = self._site.device.partition(":")[0]
        self.holding = self._worker.holding
        self.lanes = self._site.fleet.known_lanes or self._worker.calibrate(
            self._site.lanes_to_try(self._site.job.cohort_size)
        )
        self._server = Server(self._site.job, self._worker.initial, self._worker.layout)

    def _result(self, selection: Selection, reports: list[DeviceReport]) -> OpenResult:
        self._opened = self._site.opened(reports, selection, self._worker.layout)
        return self._opened

    def _evaluate_personal(self, broadcast: Broadcast) -> dict[int, Predictions]:
        devices = range(self._site.job.num_devices)
        evaluate = partial(self._worker.evaluate_group, broadcast=broadcast, states=self._accepted.of(devices))
        found = self._by_group("evaluate", devices, self._federation.num_test(devices), evaluate)
        return dict(zip(devices, found, strict=True))

    def _by_group(
        self, stage: str, devices: Sequence[int], num_samples: Sequence[int], work: Callable[[Group], list[T]]
    ) -> list[T]:
        """What work(group) gives for each device, in the order of `devices`."""
        found: dict[int, T] = {}
        for group in lane_groups(devices, num_samples, self.lanes):
            found |= zip(group, work(group), strict=True)
            self._progress(stage, len(found), len(devices))
        return [found[device] for device in devices]
