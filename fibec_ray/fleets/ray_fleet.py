"""The Ray fleet: a ServerActor and DeviceActors on a cluster; bit-equal to the in-process fleet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fibec_ray.errors import FleetError, RunDirError, ServerLostError
from fibec_ray.fleets.cluster import connect, resources
from fibec_ray.fleets.failures import get, server_errors
from fibec_ray.fleets.nodes import await_nodes, prepare_nodes
from fibec_ray.fleets.placement import Placement, decide, room
from fibec_ray.fleets.pool import ActorPool, Ended
from fibec_ray.fleets.ray_actors import DeviceActor, ServerActor
from fibec_ray.fleets.ray_round import RayRound
from fibec_ray.fleets.schedule import Call, CostModel
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.fleets.site import Site, assemble_evaluation
from fibec_ray.fleets.wire import from_wire, to_wire
from fibec_ray.learning import checkpoint
from fibec_ray.learning.evaluation import evaluation_chunks
from fibec_ray.learning.federation import Federation
from fibec_ray.learning.grouping import Group, lane_groups
from fibec_ray.learning.planning import plan_round
from fibec_ray.reports import DeviceReport
from fibec_ray.tensors import Tensors
from fibec_ray.types import (
    OPENING_ROUND,
    EvaluationResult,
    Layout,
    OpenResult,
    Predictions,
    Progress,
    RoundPlan,
    RoundResult,
)

CALLS_PER_ACTOR = 4
"""Evaluation work is cut into about this many calls for each actor, so that the slowest one does not lag."""

Submit = Callable[[Group, Any, int], list[ray.ObjectRef]]
"""(devices, actor, attempt) -> refs as in `Call`"""

T = TypeVar("T")


class RayFleet:
    """open: connect, place actors, run the initialisation phase. Then rounds; then `close`. An error ends the fleet.

    Lost actors, nodes and updates cost time only, and so does the server: another one goes on from the last checkpoint.
    note: takes a line about what was lost.
    """

    placement: Placement
    lanes: int
    holding: tuple[str, str] | None = None
    """of the actor that answered first; with `backend: auto`, nodes that have other GPUs may hold it otherwise"""
    num_prepared = 0
    """nodes whose base weights were prepared before there were actors"""

    def __init__(
        self,
        site: Site,
        config: FleetConfig,
        progress: Progress = lambda stage, done, total: None,
        note: Callable[[str], None] = lambda text: None,
    ):
        self._site, self._config, self._progress, self._note = site, config, progress, note
        self._owns_ray = False
        self._pool: ActorPool | None = None
        self._server: Any = None
        self._costs = CostModel()
        self._federation: Federation
        self._opened: OpenResult
        self._layer_reports: list[Any] | None = None
        """what devices said in the initialisation phase, if this fleet ran it"""
        self._next_round = 0
        self._left_out: dict[int, tuple[int, ...]] = {}
        """devices that rounds went on without"""
        self._digest = (OPENING_ROUND, "")
        """the newest that is known, and the round that it is before"""

    def open(self) -> OpenResult:
        layout = self._start()
        opened = self._open_devices() if self._site.job.method.opens else []
        self._layer_reports = [layer_report for layer_report, _ in opened]
        ask = partial(self._ask_server, "open", self._layer_reports)
        names, scores = self._healing(OPENING_ROUND, ask)
        return self._result(names, scores, layout, [report for _, report in opened])

    def run_round(self, plan: RoundPlan) -> RoundResult:
        self._grow()
        result = self._healing(plan.round, partial(self._round, plan))
        self._left_out |= {plan.round: result.lost} if result.lost else {}
        self._next_round = plan.round + 1
        self._costs.learn(result.reports)
        return result

    def evaluate(self, round_: int) -> EvaluationResult:
        return self._healing(round_ + 1, partial(self._evaluate, round_ + 1))

    def adapter(self) -> Tensors:
        found = self._healing(self._next_round, partial(self._ask_server, "adapter"))
        values: Tensors = from_wire(found)
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
        names, scores = self._ask_server("restore", path)
        return self._result(names, scores, layout, [])

    def save(self, path: Path) -> Callable[[], str]:
        """The server actor takes calls in order: what it writes is its state before the next round's updates."""
        return partial(self._ask, self._server.save.remote(path))

    def digest(self) -> str:
        found: str = self._healing(self._next_round, partial(self._ask_server, "digest"))
        self._digest = self._next_round, found
        return found

    def _start(self) -> Layout:
        """Connects, places actors, and gives the server P^0."""
        self._federation = self._site.federation()
        self._owns_ray = connect(self._config)
        await_nodes(self._config)
        self.placement = decide(self._config, self._site.job.num_devices, resources(self._config))
        self.num_prepared = prepare_nodes(self._site, self._config.startup_timeout_s)
        self._pool = self._make_pool()
        layout = self._start_server()
        self.lanes = self._find_lanes()
        return layout

    def _start_server(self) -> Layout:
        self._server = self._make_server()
        initial, layout, self.holding = self._describe()
        self._ask_server("start", initial, layout)
        return layout

    def _healing(self, round_: int, work: Callable[[], T]) -> T:
        """Does something that needs the server as it is before a round; if it is lost, again with another one."""
        for attempt in range(self._config.max_retries + 1):
            try:
                if attempt:
                    self._revive(round_)
                return work()
            except ServerLostError as error:
                if attempt == self._config.max_retries or self._config.on_lost == "abort":
                    raise
                self._note(f"{error}; another one takes its place, with the state before round {max(round_, 0)}")
        raise AssertionError("not reached")

    def _revive(self, round_: int) -> None:
        """Makes a server with the state before a round: a checkpoint's, and rounds since then are run once more."""
        ray.kill(self._server)
        self._start_server()
        if round_ == OPENING_ROUND:
            return
        job = self._site.job
        for t in range(self._restore_newest(round_), round_):
            self._round(plan_round(job, job.cohort_size, t), self._left_out.get(t, ()))
        before, digest = self._digest
        if before == round_ and digest != self._ask_server("digest"):
            raise FleetError(f"round {round_}: the server that was lost cannot be had back: other bits come out")

    def _restore_newest(self, round_: int) -> int:
        """Gives the new server the newest state that is known and not later than before the round; the round it is of.

        Without a checkpoint there is what devices said at the start.
        """
        for kept in reversed([kept for kept in checkpoint.rounds_kept(self._site.run_dir) if kept <= round_]):
            try:
                path = checkpoint.load(self._site.run_dir, kept).server
            except RunDirError:
                continue
            self._ask_server("restore", path)
            return kept
        if self._layer_reports is None:
            raise FleetError("the server was lost, and no checkpoint can be used to go on from")
        self._ask_server("open", self._layer_reports)
        return 0

    def _round(self, plan: RoundPlan, absent: Collection[int] = ()) -> RoundResult:
        groups = self._groups(plan.cohort)
        round_ = RayRound(self._server, plan, groups, self._config, self._site.tolerance, self._note)
        return round_.run(partial(self._on_groups, "train", devices=plan.cohort), absent)

    def _grow(self) -> None:
        """Nodes that have joined get actors, in a pooled fleet whose size is not set."""
        assert self._pool is not None, "open comes first"
        if self.placement.per_device or self._config.num_actors is not None:
            return
        more = room(self.placement, self._site.job.num_devices, resources(self._config)) - self._pool.size
        if more > 0:
            self._note(f"the cluster has grown: {more} more actors")
            self._pool.grow(more)

    def _evaluate(self, before: int) -> EvaluationResult:
        batch_size = self._site.job.eval_batch_size
        broadcast = self._server.broadcast.remote(before)
        chunks = evaluation_chunks(self._federation.test_set(), batch_size)
        parts = self._evaluate_shared(chunks, broadcast)
        personal = self._evaluate_personal(broadcast) if self._opened.keeps_personal else None
        return assemble_evaluation(self._federation, batch_size, parts, personal)

    def _result(self, names: frozenset[str], scores: Any, layout: Layout, reports: list[DeviceReport]) -> OpenResult:
        method = self._site.job.method
        own, frozen = method.has_own_models, method.mask.freezes
        self._opened = OpenResult(reports, names, layout, from_wire(scores), own, frozen)
        return self._opened

    def _make_pool(self) -> ActorPool:
        place, config = self.placement, self._config
        options = {"num_cpus": place.cpus_per_actor, "num_gpus": place.gpus_per_actor, "scheduling_strategy": "SPREAD"}
        # Ray restarts an actor a few times; tasks are never retried by Ray, because it may restart them nowhere.
        remote = ray.remote(DeviceActor).options(max_restarts=config.max_retries, max_task_retries=0, **options)
        kind = "device" if place.per_device else "pool"
        pool = ActorPool(
            make=lambda i: remote.remote(self._site, f"{kind}-{i:05d}", place.gpus_per_actor),
            size=place.num_actors,
            startup_timeout_s=config.startup_timeout_s,
            call_timeout_s=config.device_timeout_s,
            max_retries=config.max_retries,
            note=self._note,
        )
        pool.start()
        return pool

    def _make_server(self) -> Any:
        # No CPU of its own: device actors may hold all of them, and the server works while they wait. On the driver's
        # node, without which the run ends anyway: then no other node's death takes it away.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        kind = ray.remote(num_cpus=0, max_restarts=0, concurrency_groups={"feed": 1})(ServerActor)
        return kind.options(scheduling_strategy=here).remote(self._site.job, self._site.threads)

    def _describe(self) -> tuple[Any, Layout, tuple[str, str] | None]:
        (ended,) = self._run([Call(0, lambda actor, attempt: [actor.describe.remote()])])
        described: tuple[Any, Layout, tuple[str, str] | None] = ended.value
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
        for group, ended in self._on_groups("open", self._groups(devices), _open, devices):
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

    def _groups(self, devices: Sequence[int]) -> list[Group]:
        return lane_groups(devices, self._federation.num_train(devices), self.lanes)

    def _on_groups(
        self,
        stage: str,
        groups: Sequence[Group],
        submit: Submit,
        devices: Sequence[int],
        attempts: Mapping[Group, int] | None = None,
        **policy: Any,
    ) -> Iterator[tuple[Group, Ended]]:
        """Calls submit for some of the devices' lane groups; gives them as they end.

        attempts: that were lost before, by group. policy: as `ActorPool.run` has it.
        """
        done = len(devices) - sum(map(len, groups))
        calls = [
            Call(
                i,
                partial(submit, group),
                self._costs.seconds(self._federation.num_train(group)),
                len(group),
                group[0] if self.placement.per_device else None,
                (attempts or {}).get(group, 0),
                f"{stage} of {'devices' if len(group) > 1 else 'device'} {', '.join(map(str, group))}",
            )
            for i, group in enumerate(groups)
        ]
        for ended in self._run(calls, **policy):
            done += len(groups[ended.key])
            self._progress(stage, done, len(devices))
            yield groups[ended.key], ended

    def _run(self, calls: Sequence[Call], **policy: Any) -> Iterator[Ended]:
        assert self._pool is not None, "open comes first"
        return self._pool.run(calls, **policy)

    def _num_calls(self, pieces: Sequence[Any]) -> int:
        return min(len(pieces), CALLS_PER_ACTOR * self.placement.num_actors)

    def _ask_server(self, method: str, *arguments: Any) -> Any:
        return self._ask(getattr(self._server, method).remote(*arguments))

    def _ask(self, ref: ray.ObjectRef) -> Any:
        with server_errors():
            return get(ref, self._config.device_timeout_s)


def _open(devices: Group, actor: Any, attempt: int) -> list[ray.ObjectRef]:
    return [actor.open.remote(devices, attempt)]


def _evaluate_shared(chunks: Any, broadcast: ray.ObjectRef, actor: Any, attempt: int) -> list[ray.ObjectRef]:
    return [actor.evaluate_shared.remote(chunks, broadcast)]


def _evaluate_personal(groups: list[Group], broadcast: ray.ObjectRef, actor: Any, attempt: int) -> list[ray.ObjectRef]:
    return [actor.evaluate_personal.remote(groups, broadcast)]
