"""The Ray fleet: a ServerActor and DeviceActors on a cluster. Its results equal the in-process fleet's bit by bit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import ray

from fibec_ray.checkpoints.checkpoint import rounds_kept
from fibec_ray.errors import FleetError, round_name
from fibec_ray.fleets.placement import UNFORESEEN, Need, Placement, decide, room
from fibec_ray.fleets.ray.actors import DeviceActor
from fibec_ray.fleets.ray.cluster import Session, connect, resources
from fibec_ray.fleets.ray.local_cluster import LocalCluster
from fibec_ray.fleets.ray.nodes import await_nodes, find_products, prepare_nodes
from fibec_ray.fleets.ray.pool import ActorPool
from fibec_ray.fleets.ray.rounds import RayRound
from fibec_ray.fleets.ray.schedule import Call, CostModel, Ended
from fibec_ray.fleets.ray.server_handle import ServerHandle
from fibec_ray.fleets.ray.trainer import Trainer
from fibec_ray.fleets.ray.wire import from_wire, to_wire
from fibec_ray.fleets.worker_spec import WorkerSpec, assemble_evaluation
from fibec_ray.learning.evaluation import evaluation_chunks
from fibec_ray.learning.federation import Federation
from fibec_ray.learning.planning import Group, Work, lane_groups, works_of, works_of_parts
from fibec_ray.learning.store import AcceptedStates
from fibec_ray.parts.sharing.base import Selection
from fibec_ray.reports import DeviceReport
from fibec_ray.tensors import Tensors
from fibec_ray.types import (
    SETUP_ROUND,
    Calibration,
    EvaluationResult,
    Layout,
    Predictions,
    Products,
    Progress,
    RoundPlan,
    RoundResult,
    SetupResult,
    States,
)

CALLS_PER_ACTOR = 4
"""Calls per actor that evaluation is cut into, so that no slow actor holds up the rest."""

MANY_PLANS = 1000

WAVE_PER_CPU, MIN_WAVE = 2, 8
"""Actors that start at the same time: each imports for seconds, and hundreds at once would all be late."""

Submit = Callable[[Any, int], list[ray.ObjectRef]]
"""(actor, attempt) -> refs as in `Call`"""


class RayFleet:
    """Call `setup` (connect, place actors, initialisation phase) or `restore`, then rounds, then `close`.

    Losing actors, nodes, updates or the server costs time only: a new server continues from the last checkpoint. Any
    other error ends the fleet. need: memory that preflight estimated. note: takes a line about what was lost.
    cluster: a local cluster that is starting; None: join or start one.
    """

    placement: Placement
    lanes: int
    calibration: Calibration | None = None
    device = ""
    backend_choice: tuple[str, str] | None = None
    """of the actor that answered first; with `backend: auto`, nodes with other GPUs may use another backend"""
    products: Products | None = None
    base = ""
    num_prepared = 0
    """nodes whose base weights were prepared before actors started"""

    def __init__(
        self,
        worker_spec: WorkerSpec,
        progress: Progress = lambda stage, done, total: None,
        note: Callable[[str], None] = lambda text: None,
        need: Need = UNFORESEEN,
        cluster: LocalCluster | None = None,
    ):
        self._worker_spec, self._config, self._progress, self._note, self._need = (
            worker_spec,
            worker_spec.fleet,
            progress,
            note,
            need,
        )
        self._cluster = cluster
        self._session: Session | None = None
        self._pool: ActorPool | None = None
        self._accepted = AcceptedStates()
        self._trainer: Trainer | None = None
        self._server = ServerHandle(worker_spec, self._describe, self._rerun, note, self._accepted)
        self._costs = CostModel()
        self._federation: Federation
        self._opened: SetupResult
        self._begun: RayRound | None = None
        """the round that devices already work on, before `run_round` asks for its result"""
        self._next_round = 0
        self._done: dict[int, tuple[RoundPlan, tuple[int, ...]]] = {}
        """rounds that are over, by number: their plan, and the devices that were left out"""

    def setup(self) -> SetupResult:
        layout = self._start()
        opened = self._setup_devices() if self._worker_spec.job.method.needs_setup else []
        reports = [report for _, report in opened]
        self._accepted.accept(reports)
        names, scores = self._server.setup([layer_report for layer_report, _ in opened])
        return self._result(names, scores, layout, reports)

    @property
    def states(self) -> States:
        return self._accepted.all

    def begin_round(self, plan: RoundPlan) -> None:
        try:
            self._begun = self._begin(plan)
        except Exception:  # the round before is logged first; then `run_round` begins again and raises
            self._stop_training()

    def run_round(self, plan: RoundPlan) -> RoundResult:
        result = self._server.healing(plan.round, partial(self._round, plan))
        self._remember(plan, result.lost)
        self._server.know_digest(plan.round + 1, result.digest)
        self._next_round = plan.round + 1
        self._costs.learn(result.reports)
        return result

    def evaluate(self, round_: int) -> EvaluationResult:
        return self._server.healing(round_ + 1, partial(self._evaluate, round_ + 1))

    def adapter(self) -> Tensors:
        values: Tensors = from_wire(self._server.adapter(self._next_round))
        return values

    def close(self) -> None:
        if self._session is None:
            return
        if self._pool is not None:
            self._pool.stop()
        self._server.stop()
        lost = self._pool is not None and self._pool.lost
        self._session.close(logs_to=self._worker_spec.run_dir / "ray_logs" if lost else None)

    def restore(self, path: Path, states: States) -> SetupResult:
        layout = self._start()
        self._accepted.reset(states)
        names, scores = self._server.restore(path)
        return self._result(names, scores, layout, [])

    def save(self, path: Path) -> Callable[[], str]:
        return self._server.save(path)

    def digest(self) -> str:
        return self._server.digest(self._next_round)

    def _start(self) -> Layout:
        """Connect, place actors, and give the server P^0."""
        self._federation = self._worker_spec.federation()
        self._session = connect(self._config, self._note, self._cluster)
        await_nodes(self._config)
        self.placement = decide(self._config, self._worker_spec.job.num_devices, resources(self._config), self._need)
        self.device = self.placement.device
        self.num_prepared = prepare_nodes(self._worker_spec, self._config.startup_timeout_s)
        self.products = find_products(self._worker_spec, self._config) if "cpu" in self.device else None
        self._worker_spec = self._worker_spec.with_products(self.products)
        self._pool = self._make_pool()
        layout = self._server.start()
        self.base = self._ask_any("fingerprint")
        self.backend_choice = self._ask_any("backend_choice")
        self.lanes = self._find_lanes()
        return layout

    def _remember(self, plan: RoundPlan, lost: tuple[int, ...]) -> None:
        """Keep the plan, for a server that is lost later. Plans from before all checkpoints are forgotten in time."""
        self._done[plan.round] = replace(plan, ahead=()), lost
        if len(self._done) % MANY_PLANS == 0:
            first = min(rounds_kept(self._worker_spec.run_dir), default=0)
            self._done = {round_: done for round_, done in self._done.items() if round_ >= first}

    def _rerun(self, round_: int) -> None:
        """Repeat a finished round for a new server, without the devices that the round left out."""
        if round_ not in self._done:
            raise FleetError(
                f"{round_name(round_)}: the server was lost, and this round ended before the run was resumed; resume "
                "the run once more"
            )
        self._round(*self._done[round_])

    def _round(self, plan: RoundPlan, absent: Collection[int] = ()) -> RoundResult:
        begun, self._begun = self._begun, None
        if begun is not None and not begun.is_of(plan.round, self._server.actor):  # its server was lost
            begun = None
            self._stop_training()
        if begun is None:
            begun = self._begin(plan, absent)
        result = begun.finish()
        self._accepted.accept(result.reports)
        return result

    def _begin(self, plan: RoundPlan, absent: Collection[int] = ()) -> RayRound:
        self._grow()
        works = works_of(plan, self._federation.num_train, self.lanes)
        ahead = works_of_parts(plan.ahead, self._federation.num_train, self.lanes)
        states = self._accepted.of(chain.from_iterable(work.devices for work in (*works, *ahead)))
        trainer = self._trainer_of(self._server.actor)
        return RayRound(trainer, plan, works, ahead, states, self._config, self._note, self._progress, absent)

    def _trainer_of(self, server: Any) -> Trainer:
        """The trainer that works with this server. What another one has begun is dropped."""
        assert self._pool is not None, "call setup first"
        if self._trainer is not None and self._trainer.server is not server:
            self._stop_training()
        if self._trainer is None:
            retries = 0 if self._config.on_lost == "abort" else self._config.max_retries
            spares, job = self._config.on_lost == "drop", self._worker_spec.job
            self._trainer = Trainer(self._pool, server, job, partial(self._call, "train"), retries, spares)
        return self._trainer

    def _stop_training(self) -> None:
        """Forget what has begun; it begins again when needed."""
        if self._trainer is not None:
            self._trainer.stop()
        self._trainer = None

    def _describe(self) -> Any:
        """P^0 and its layout, for a server that starts. What began with a lost one is dropped."""
        self._stop_training()
        return self._ask_any("describe")

    def _grow(self) -> None:
        """Start actors on nodes that joined, in a pooled fleet without a set size."""
        assert self._pool is not None, "call setup first"
        if self.placement.per_device or self.placement.classes or self._config.num_actors is not None:
            return
        more = room(self.placement, self._worker_spec.job.num_devices, resources(self._config)) - self._pool.size
        if more > 0:
            self._note(f"the cluster has grown: {more} more {'actor' if more == 1 else 'actors'}")
            self._pool.grow(more)

    def _evaluate(self, before: int) -> EvaluationResult:
        batch_size = self._worker_spec.job.eval_batch_size
        broadcast = self._server.actor.broadcast.remote(before)
        chunks = evaluation_chunks(self._federation.test_set(), batch_size)
        parts = self._evaluate_shared(chunks, broadcast)
        personal = self._evaluate_personal(broadcast) if self._opened.keeps_personal else None
        return assemble_evaluation(self._federation, batch_size, parts, personal)

    def _result(self, names: frozenset[str], scores: Any, layout: Layout, reports: list[DeviceReport]) -> SetupResult:
        self._opened = self._worker_spec.opened(reports, Selection(names, from_wire(scores)), layout)
        return self._opened

    def _make_pool(self) -> ActorPool:
        place, config = self.placement, self._config
        # Ray restarts an actor a few times. It never retries tasks, because it might find no actor for them.
        remote, limits = ray.remote(DeviceActor), {"max_restarts": config.max_retries, "max_task_retries": 0}
        kind = "device" if place.per_device else "pool"

        def make(i: int) -> Any:
            options = place.options(i)
            return remote.options(**options, **limits).remote(self._worker_spec, f"{kind}-{i:05d}", options["num_gpus"])

        pool = ActorPool(
            make=make,
            size=place.num_actors,
            startup_timeout_s=config.startup_timeout_s,
            call_timeout_s=config.device_timeout_s,
            max_retries=config.max_retries,
            at_once=max(MIN_WAVE, int(WAVE_PER_CPU * ray.cluster_resources().get("CPU", 0))),
            note=self._note,
            kind_of=place.class_of_actor,
            ask=lambda actor: actor.ready.remote(self.base),
        )
        pool.start()
        return pool

    def _find_lanes(self) -> int:
        """The configured lanes, or those of a trial on one actor. All actors use the same, as results depend on it."""
        if self.placement.per_device:
            return 1
        if self._config.known_lanes is not None:
            return self._config.known_lanes
        devices = -(-self._worker_spec.job.cohort_size // self.placement.num_actors)
        found: Calibration = self._ask_any("calibrate", self._worker_spec.lanes_to_try(devices))
        self.calibration = self._worker_spec.with_limit(found, devices)
        return self.calibration.lanes

    def _setup_devices(self) -> list[tuple[Any, DeviceReport]]:
        """Each device's layer report and log row, in device order. They are small, so the driver holds them."""
        devices, opened = range(self._worker_spec.job.num_devices), dict[int, tuple[Any, DeviceReport]]()
        works = [Work(SETUP_ROUND, SETUP_ROUND, group) for group in self._groups(devices)]
        for ended in self._run([self._call("setup", work, partial(_setup, work.devices)) for work in works]):
            opened |= zip(ended.key.devices, ended.value, strict=True)
            self._progress("setup", len(opened), len(devices))
        return [opened[device] for device in devices]

    def _evaluate_shared(self, chunks: list[Any], broadcast: ray.ObjectRef) -> list[Predictions]:
        """Predictions of the chunks, in their order."""
        size = -(-len(chunks) // self._num_calls(chunks))
        parts = [chunks[i : i + size] for i in range(0, len(chunks), size)]
        calls = [Call(i, _asking("evaluate_shared", to_wire(part), broadcast)) for i, part in enumerate(parts)]
        found = {ended.key: from_wire(ended.value) for ended in self._run(calls)}
        return [prediction for i in range(len(parts)) for prediction in found[i]]

    def _evaluate_personal(self, broadcast: ray.ObjectRef) -> dict[int, Predictions]:
        """Predictions of every device, in device order."""
        devices = range(self._worker_spec.job.num_devices)
        groups = lane_groups(devices, self._federation.num_test(devices), self.lanes)
        shares = [
            part[i :: self._num_calls(part)] for part in self._by_class(groups) for i in range(self._num_calls(part))
        ]
        calls = [
            Call(
                i,
                _asking("evaluate_personal", share, broadcast, self._accepted.of(chain.from_iterable(share))),
                num_devices=sum(len(group) for group in share),
                kind=self._class_of(share[0]),
            )
            for i, share in enumerate(shares)
        ]
        found: dict[int, Predictions] = {}
        for ended in self._run(calls):
            hosted = [device for group in shares[ended.key] for device in group]
            found |= zip(hosted, from_wire(ended.value), strict=True)
        return {device: found[device] for device in devices}

    def _class_of(self, group: Group) -> int:
        """The class of a group's first device. Groups do not depend on classes, and so neither do results."""
        return self.placement.class_of_device(group[0], self._worker_spec.job.num_devices)

    def _by_class(self, groups: Sequence[Group]) -> list[list[Group]]:
        """The groups of each class that has any."""
        found: dict[int, list[Group]] = {}
        for group in groups:
            found.setdefault(self._class_of(group), []).append(group)
        return list(found.values())

    def _groups(self, devices: Sequence[int]) -> list[Group]:
        return lane_groups(devices, self._federation.num_train(devices), self.lanes)

    def _call(self, stage: str, work: Work, submit: Submit) -> Call:
        """A call for a lane group, with its place and its predicted seconds."""
        group = work.devices
        return Call(
            key=work,
            submit=submit,
            seconds=self._costs.seconds(self._federation.num_train(group)),
            num_devices=len(group),
            home=group[0] if self.placement.per_device else None,
            kind=self._class_of(group),
            what=f"{stage} of {'devices' if len(group) > 1 else 'device'} {', '.join(map(str, group))}",
            due=work.round,
        )

    def _run(self, calls: Sequence[Call]) -> Iterator[Ended]:
        assert self._pool is not None, "call setup first"
        return self._pool.run(calls)

    def _ask_any(self, method: str, *arguments: Any) -> Any:
        """Ask one actor for something that all would answer alike."""
        (ended,) = self._run([Call(0, _asking(method, *arguments))])
        return ended.value

    def _num_calls(self, pieces: Sequence[Any]) -> int:
        return min(len(pieces), CALLS_PER_ACTOR * self.placement.num_actors)


def _setup(devices: Group, actor: Any, attempt: int) -> list[ray.ObjectRef]:
    return [actor.setup.remote(devices, attempt)]


def _asking(method: str, *arguments: Any) -> Callable[[Any, int], list[ray.ObjectRef]]:
    """`submit` of a `Call` that asks an actor for the same at each attempt."""
    return lambda actor, attempt: [getattr(actor, method).remote(*arguments)]
