"""The in-process fleet: every device on one model in this process. The reference that the Ray fleet must equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import TypeVar

from fibec_ray.checkpoints.checkpoint import read_state, write_state
from fibec_ray.fleets.settings import check_quorum
from fibec_ray.fleets.worker_spec import WorkerSpec, assemble_evaluation
from fibec_ray.learning.evaluation import evaluation_chunks
from fibec_ray.learning.faults import sent_by
from fibec_ray.learning.federation import Federation
from fibec_ray.learning.gpu_memory import forget_peak
from fibec_ray.learning.group_worker import GroupWorker
from fibec_ray.learning.planning import Group, arrived, lane_groups, plan_of, works_of
from fibec_ray.learning.server import Server
from fibec_ray.learning.store import AcceptedStates
from fibec_ray.parts.sharing.base import Selection
from fibec_ray.reports import DeviceReport
from fibec_ray.tensors import Tensors
from fibec_ray.types import (
    Broadcast,
    Calibration,
    DeviceUpdate,
    EvaluationResult,
    Predictions,
    Products,
    Progress,
    RoundPlan,
    RoundResult,
    SetupResult,
    States,
)

T = TypeVar("T")


class LocalFleet:
    """A fleet in this process."""

    lanes: int
    calibration: Calibration | None = None
    device = ""
    backend_choice: tuple[str, str] | None = None
    products: Products | None = None
    base: str

    def __init__(self, worker_spec: WorkerSpec, progress: Progress = lambda stage, done, total: None):
        self._worker_spec, self._progress = worker_spec, progress
        self._accepted = AcceptedStates()
        self._worker: GroupWorker
        self._server: Server
        self._federation: Federation
        self._opened: SetupResult

    def setup(self) -> SetupResult:
        job = self._worker_spec.job
        self._start()
        devices = range(job.num_devices if job.method.needs_setup else 0)
        opened = self._by_group("setup", devices, self._federation.num_train(devices), self._worker.setup_group)
        selection = self._server.setup([layer_report for layer_report, _ in opened])
        reports = [report for _, report in opened]
        self._accepted.accept(reports)
        return self._result(selection, reports)

    @property
    def states(self) -> States:
        return self._accepted.all

    def begin_round(self, plan: RoundPlan) -> None:
        """Do nothing: this process does all the work, in `run_round`."""

    def run_round(self, plan: RoundPlan) -> RoundResult:
        trained = self._train(plan)
        updates = [sent_by(device, trained[device][0]) for device in plan.cohort]
        bad = self._server.absorb(plan.round, updates, plan.versions, plan.under_way.values())
        check_quorum(self._worker_spec.fleet, plan, (), bad)
        reports = [arrived(trained[device][1], plan, bad.get(device)) for device in plan.cohort]
        self._accepted.accept(reports)
        return RoundResult(reports)

    def _train(self, plan: RoundPlan) -> dict[int, tuple[DeviceUpdate, DeviceReport]]:
        """Each device's update and report. Those that start from one model train together."""
        found: dict[int, tuple[DeviceUpdate, DeviceReport]] = {}
        states = self._accepted.of(plan.cohort)
        works = works_of(plan, self._federation.num_train, self.lanes)
        for version, same in groupby(works, key=lambda work: work.version):
            groups, broadcast = [work.devices for work in same], self._server.broadcast(version)
            own = plan_of(self._worker_spec.job, plan, version, [*chain.from_iterable(groups)], states)
            for group in groups:
                found |= zip(group, self._worker.train_group(own, group, broadcast), strict=True)
                self._progress("train", len(found), len(plan.cohort))
        return found

    def evaluate(self, round_: int) -> EvaluationResult:
        batch_size = self._worker_spec.job.eval_batch_size
        broadcast = self._server.broadcast(round_ + 1)
        chunks = evaluation_chunks(self._federation.test_set(), batch_size)
        parts = self._worker.evaluate_shared(chunks, broadcast)
        personal = self._evaluate_personal(broadcast) if self._opened.keeps_personal else None
        return assemble_evaluation(self._federation, batch_size, parts, personal)

    def adapter(self) -> Tensors:
        return self._server.adapter()

    def close(self) -> None:
        """There is nothing to stop."""

    def restore(self, path: Path, states: States) -> SetupResult:
        self._start()
        self._accepted.reset(states)
        return self._result(self._server.restore(read_state(path)), [])

    def save(self, path: Path) -> Callable[[], str]:
        return partial(write_state, path, self._server.state())

    def digest(self) -> str:
        return self._server.digest()

    def _start(self) -> None:
        self._federation = self._worker_spec.federation()
        self.base = self._worker_spec.base_fingerprint()
        self.device = self._worker_spec.device.partition(":")[0]
        self.products = self._worker_spec.find_products() if self.device == "cpu" else None
        self._worker_spec = self._worker_spec.with_products(self.products)
        self._worker = self._worker_spec.worker()
        self.backend_choice = self._worker.backend_choice
        self.lanes = self._worker_spec.fleet.known_lanes or self._find_lanes()
        self._server = Server(self._worker_spec.job, self._worker.initial, self._worker.layout)

    def _find_lanes(self) -> int:
        devices = self._worker_spec.job.cohort_size
        found = self._worker.calibrate(self._worker_spec.lanes_to_try(devices))
        forget_peak()
        self.calibration = self._worker_spec.with_limit(found, devices)
        return self.calibration.lanes

    def _result(self, selection: Selection, reports: list[DeviceReport]) -> SetupResult:
        self._opened = self._worker_spec.opened(reports, selection, self._worker.layout)
        return self._opened

    def _evaluate_personal(self, broadcast: Broadcast) -> dict[int, Predictions]:
        devices = range(self._worker_spec.job.num_devices)
        evaluate = partial(self._worker.evaluate_group, broadcast=broadcast, states=self._accepted.of(devices))
        found = self._by_group("evaluate", devices, self._federation.num_test(devices), evaluate)
        return dict(zip(devices, found, strict=True))

    def _by_group(
        self, stage: str, devices: Sequence[int], num_samples: Sequence[int], work: Callable[[Group], list[T]]
    ) -> list[T]:
        """The results of work(group) for each device, in the order of `devices`."""
        found: dict[int, T] = {}
        for group in lane_groups(devices, num_samples, self.lanes):
            found |= zip(group, work(group), strict=True)
            self._progress(stage, len(found), len(devices))
        return [found[device] for device in devices]
