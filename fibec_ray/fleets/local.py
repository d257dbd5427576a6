"""The in-process fleet: every device on one model in this process. The reference that the Ray fleet must equal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from fibec_ray.fleets.site import Site, assemble_evaluation
from fibec_ray.learning.checkpoint import read_state, write_state
from fibec_ray.learning.device import DeviceWorker
from fibec_ray.learning.evaluation import evaluation_chunks
from fibec_ray.learning.server import Server
from fibec_ray.parts.sharing.base import Selection
from fibec_ray.reports import DeviceReport
from fibec_ray.tensors import Tensors
from fibec_ray.types import EvaluationResult, OpenResult, Progress, RoundPlan, RoundResult


class LocalFleet:
    def __init__(self, site: Site, progress: Progress = lambda stage, done, total: None):
        self._site, self._progress = site, progress
        self._worker: DeviceWorker
        self._server: Server
        self._opened: OpenResult

    def open(self) -> OpenResult:
        job = self._site.job
        self._start()
        opened = []
        for device in range(job.num_devices if job.method.opens else 0):
            opened.append(self._worker.open(device))
            self._progress("open", device + 1, job.num_devices)
        selection = self._server.open([layer_report for layer_report, _ in opened])
        return self._result(selection, [report for _, report in opened])

    def run_round(self, plan: RoundPlan) -> RoundResult:
        broadcast = self._server.broadcast(plan.round)
        updates, reports = [], []
        for device in plan.cohort:
            update, report = self._worker.train(plan, device, broadcast)
            updates.append(update)
            reports.append(report)
            self._progress("train", len(reports), len(plan.cohort))
        self._server.absorb(plan.round, updates)
        return RoundResult(reports)

    def evaluate(self, round_: int) -> EvaluationResult:
        job, federation = self._site.job, self._site.federation()
        broadcast = self._server.broadcast(round_ + 1)
        chunks = evaluation_chunks(federation.test_set(), job.eval_batch_size)
        parts = self._worker.evaluate_shared(chunks, broadcast)
        personal = None
        if self._opened.keeps_personal:
            personal = {d: self._worker.evaluate_personal(d, broadcast) for d in range(job.num_devices)}
        return assemble_evaluation(federation, job.eval_batch_size, parts, personal)

    def adapter(self) -> Tensors:
        return self._server.adapter()

    def close(self) -> None:
        """Nothing to stop."""

    def restore(self, path: Path) -> OpenResult:
        self._start()
        return self._result(self._server.restore(read_state(path)), [])

    def save(self, path: Path) -> Callable[[], str]:
        return partial(write_state, path, self._server.state())

    def digest(self) -> str:
        return self._server.digest()

    def _start(self) -> None:
        self._worker = self._site.worker()
        self._server = Server(self._site.job, self._worker.initial, self._worker.layout)

    def _result(self, selection: Selection, reports: list[DeviceReport]) -> OpenResult:
        method = self._site.job.method
        self._opened = OpenResult(
            reports,
            selection.names,
            self._worker.layout,
            selection.scores,
            method.has_own_models,
            method.mask.freezes,
        )
        return self._opened
