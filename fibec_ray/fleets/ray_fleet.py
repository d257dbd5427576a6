"""The Ray fleet: a ServerActor and DeviceActors on a cluster; bit-equal to the in-process fleet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray

from fibec_ray.errors import FleetError
from fibec_ray.fleets.cluster import connect, resources
from fibec_ray.fleets.failures import LOST, ActorPool, Ended, get
from fibec_ray.fleets.placement import Placement, decide
from fibec_ray.fleets.ray_actors import DeviceActor, ServerActor
from fibec_ray.fleets.reduction import Reduction
from fibec_ray.fleets.schedule import Call, CostModel
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.fleets.site import Site, assemble_evaluation
from fibec_ray.fleets.wire import from_wire, to_wire
from fibec_ray.learning.evaluation import evaluation_chunks
from fibec_ray.learning.federation import Federation
from fibec_ray.learning.grouping import Group, lane_groups
from fibec_ray.reports import DeviceReport
from fibec_ray.tensors import Tensors
from fibec_ray.types import EvaluationResult, Layout, OpenResult, Predictions, Progress, RoundPlan, RoundResult

CALLS_PER_ACTOR = 4
"""Evaluation work is cut into about this many calls for each actor, so that the slowest one does not lag."""

Submit = Callable[[Group, Any, int], list[ray.ObjectRef]]
"""(devices, actor, attempt) -> refs as in `Call`"""


class RayFleet:
    """open: connect, place actors, run the initialisation phase. Then rounds; then `close`. An error ends the fleet."""

    placement: Placement
    lanes: int

    def __init__(self, site: Site, config: FleetConfig, progress: Progress = lambda stage, done, total: None):
        self._site, self._config, self._progress = site, config, progress
        self._owns_ray = False
        self._pool: ActorPool | None = None
        self._server: Any = None
        self._costs = CostModel()
        self._federation: Federation
        self._opened: OpenResult

    def open(self) -> OpenResult:
        layout = self._start()
        opened = self._open_devices() if self._site.job.method.opens else []
        names, scores = self._ask(self._server.open.remote([layer_report for layer_report, _ in opened]))
        return self._result(names, scores, layout, [report for _, report in opened])

    def run_round(self, plan: RoundPlan) -> RoundResult:
        # The plan names the whole cohort: it travels once, not with each call.
        told, broadcast = ray.put(plan), self._server.broadcast.remote(plan.round)
        reduction, reports = Reduction(self._server, plan), dict[int, DeviceReport]()
        for group, ended in self._on_groups("train", plan.cohort, partial(_train, told, broadcast)):
            reduction.add(dict(zip(group, ended.refs, strict=True)))
            reports |= zip(group, ended.value, strict=True)
        with _server_errors():
            reduction.finish(self._config.device_timeout_s)
        self._costs.learn(reports.values())
        return RoundResult([reports[device] for device in plan.cohort])

    def evaluate(self, round_: int) -> EvaluationResult:
        batch_size = self._site.job.eval_batch_size
        broadcast = self._server.broadcast.remote(round_ + 1)
        chunks = evaluation_chunks(self._federation.test_set(), batch_size)
        parts = self._evaluate_shared(chunks, broadcast)
        personal = self._evaluate_personal(broadcast) if self._opened.keeps_personal else None
        return assemble_evaluation(self._federation, batch_size, parts, personal)

    def adapter(self) -> Tensors:
        values: Tensors = from_wire(self._ask(self._server.adapter.remote()))
        return values

    def close(self) -> None:
        if self._pool is not None:
            self._pool.stop()
        if self._server is not None:
            ray.kill(self._server)
        if self._owns_ray:
            ray.shutdown()

    def restore(self, path: Path) -> OpenResult:
        layout = self._start()
        names, scores = self._ask(self._server.restore.remote(path))
        return self._result(names, scores, layout, [])

    def save(self, path: Path) -> Callable[[], str]:
        """The server actor takes calls in order: what it writes is its state before the next round's updates."""
        return partial(self._ask, self._server.save.remote(path))

    def digest(self) -> str:
        found: str = self._ask(self._server.digest.remote())
        return found

    def _start(self) -> Layout:
        """Connects, places actors, and gives the server P^0."""
        self._federation = self._site.federation()
        self._owns_ray = connect(self._config)
        self.placement = decide(self._config, self._site.job.num_devices, resources(self._config))
        self._pool = self._make_pool()
        self._server = self._make_server()
        initial, layout = self._describe()
        self._ask(self._server.start.remote(initial, layout))
        self.lanes = self._find_lanes()
        return layout

    def _result(self, names: frozenset[str], scores: Any, layout: Layout, reports: list[DeviceReport]) -> OpenResult:
        method = self._site.job.method
        own, frozen = method.has_own_models, method.mask.freezes
        self._opened = OpenResult(reports, names, layout, from_wire(scores), own, frozen)
        return self._opened

    def _make_pool(self) -> ActorPool:
        place, config = self.placement, self._config
        options = {"num_cpus": place.cpus_per_actor, "num_gpus": place.gpus_per_actor}
        # Ray restarts an actor a few times; tasks are never retried by Ray, because it may restart them nowhere.
        remote = ray.remote(DeviceActor).options(max_restarts=config.max_retries, max_task_retries=0, **options)
        kind = "device" if place.per_device else "pool"
        pool = ActorPool(
            make=lambda i: remote.remote(self._site, f"{kind}-{i:05d}", place.gpus_per_actor),
            size=place.num_actors,
            startup_timeout_s=config.startup_timeout_s,
            call_timeout_s=config.device_timeout_s,
            max_retries=config.max_retries,
        )
        pool.start()
        return pool

    def _make_server(self) -> Any:
        # No CPU of its own: device actors may hold all of them, and the server works while they wait.
        kind = ray.remote(num_cpus=0, max_restarts=0, concurrency_groups={"feed": 1})(ServerActor)
        return kind.remote(self._site.job, self._site.threads)

    def _describe(self) -> tuple[Any, Layout]:
        (ended,) = self._run([Call(0, lambda actor, attempt: [actor.describe.remote()])])
        described: tuple[Any, Layout] = ended.value
        return described

    def _find_lanes(self) -> int:
        """As the settings have it, or as one actor finds on its machine; the same for all, for they make the bits."""
        if self.placement.per_device:
            return 1
        if self._site.lanes is not None:
            return self._site.lanes
        most = -(-self._site.job.cohort_size // self.placement.num_actors)
        (ended,) = self._run([Call(0, lambda actor, attempt: [actor.calibrate.remote(most)])])
        found: int = ended.value
        return found

    def _open_devices(self) -> list[tuple[Any, DeviceReport]]:
        """What each device says, in device order; small, so that the driver may hold it."""
        devices, opened = range(self._site.job.num_devices), dict[int, tuple[Any, DeviceReport]]()
        for group, ended in self._on_groups("open", devices, _open):
            opened |= zip(group, ended.value, strict=True)
        return [opened[device] for device in devices]

    def _evaluate_shared(self, chunks: list[Any], broadcast: ray.ObjectRef) -> list[Predictions]:
        """Predictions of the chunks, in their order."""
        size = -(-len(chunks) // self._num_calls(chunks))
        parts = [chunks[i : i + size] for i in range(0, len(chunks), size)]
        calls = [Call(i, partial(_evaluate_shared, to_wire(part), broadcast)) for i, part in enumerate(parts)]
        found = {ended.key: from_wire(ended.value) for ended in self._run(calls)}
        return [prediction for i in range(len(parts)) for prediction in found[i]]

    def _evaluate_personal(self, broadcast: ray.ObjectRef) -> dict[int, Predictions]:
        """Predictions of every device, in device order."""
        devices = range(self._site.job.num_devices)
        groups = lane_groups(devices, self._federation.num_test(devices), self.lanes)
        shares = [groups[i :: self._num_calls(groups)] for i in range(self._num_calls(groups))]
        calls = [
            Call(i, partial(_evaluate_personal, share, broadcast), num_devices=sum(len(group) for group in share))
            for i, share in enumerate(shares)
        ]
        found: dict[int, Predictions] = {}
        for ended in self._run(calls):
            hosted = [device for group in shares[ended.key] for device in group]
            found |= zip(hosted, from_wire(ended.value), strict=True)
        return {device: found[device] for device in devices}

    def _on_groups(self, stage: str, devices: Sequence[int], submit: Submit) -> Iterator[tuple[Group, Ended]]:
        """Calls submit for each lane group of the devices; gives them as they end."""
        sizes = dict(zip(devices, self._federation.num_train(devices), strict=True))
        groups, done = lane_groups(devices, list(sizes.values()), self.lanes), 0
        calls = [
            Call(
                i,
                partial(submit, group),
                self._costs.seconds(sizes[device] for device in group),
                len(group),
                group[0] if self.placement.per_device else None,
            )
            for i, group in enumerate(groups)
        ]
        for ended in self._run(calls):
            done += len(groups[ended.key])
            self._progress(stage, done, len(devices))
            yield groups[ended.key], ended

    def _run(self, calls: Sequence[Call]) -> Iterator[Ended]:
        assert self._pool is not None, "open comes first"
        return self._pool.run(calls)

    def _num_calls(self, pieces: Sequence[Any]) -> int:
        return min(len(pieces), CALLS_PER_ACTOR * self.placement.num_actors)

    def _ask(self, ref: ray.ObjectRef) -> Any:
        with _server_errors():
            return get(ref, self._config.device_timeout_s)


@contextmanager
def _server_errors() -> Iterator[None]:
    try:
        yield
    except LOST as error:
        raise FleetError(f"the server actor or one of its updates was lost: {error}") from error


def _open(devices: Group, actor: Any, attempt: int) -> list[ray.ObjectRef]:
    return [actor.open.remote(devices, attempt)]


def _train(
    plan: ray.ObjectRef, broadcast: ray.ObjectRef, devices: Group, actor: Any, attempt: int
) -> list[ray.ObjectRef]:
    count = len(devices) + 1
    refs: list[ray.ObjectRef] = actor.train.options(num_returns=count).remote(plan, devices, broadcast, attempt)
    return refs


def _evaluate_shared(chunks: Any, broadcast: ray.ObjectRef, actor: Any, attempt: int) -> list[ray.ObjectRef]:
    return [actor.evaluate_shared.remote(chunks, broadcast)]


def _evaluate_personal(groups: list[Group], broadcast: ray.ObjectRef, actor: Any, attempt: int) -> list[ray.ObjectRef]:
    return [actor.evaluate_personal.remote(groups, broadcast)]
