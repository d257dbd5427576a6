"""The Ray fleet: a ServerActor and DeviceActors on a cluster; bit-equal to the in-process fleet."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import ray

from fibec_ray.errors import ConfigError, FleetError
from fibec_ray.fleets.failures import LOST, ActorPool, Call, get
from fibec_ray.fleets.placement import Placement, Resources, decide
from fibec_ray.fleets.ray_actors import DeviceActor, ServerActor
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.fleets.site import Site, assemble_evaluation
from fibec_ray.fleets.wire import from_wire, to_wire
from fibec_ray.learning.evaluation import evaluation_chunks
from fibec_ray.models.quiet import OFFLINE_ENV
from fibec_ray.reports import DeviceReport
from fibec_ray.tensors import Tensors
from fibec_ray.types import EvaluationResult, Layout, OpenResult, Predictions, Progress, RoundPlan, RoundResult

CONNECT_TIMEOUT_S = 5
CALLS_PER_ACTOR = 4
"""Evaluation work is cut into about this many calls for each actor, so that the slowest one does not lag."""


class RayFleet:
    """open: connect, place actors, run the initialisation phase. Then rounds; then `close`."""

    placement: Placement

    def __init__(self, site: Site, config: FleetConfig, progress: Progress = lambda stage, done, total: None):
        self._site, self._config, self._progress = site, config, progress
        self._owns_ray = False
        self._pool: ActorPool | None = None
        self._server: Any = None
        self._opened: OpenResult

    def open(self) -> OpenResult:
        job, layout = self._site.job, self._start()
        devices = list(range(job.num_devices)) if job.method.opens else []
        opened = self._map("open", devices, _open)
        names, scores = self._ask(self._server.open.remote([self._ask(refs[0]) for refs in opened]))
        return self._result(names, scores, layout, [self._ask(refs[1]) for refs in opened])

    def run_round(self, plan: RoundPlan) -> RoundResult:
        broadcast = self._server.broadcast.remote(plan.round)
        trained = self._map("train", plan.cohort, partial(_train, plan, broadcast))
        self._ask(self._server.absorb.remote(plan.round, [refs[0] for refs in trained]))
        return RoundResult([self._ask(refs[1]) for refs in trained])

    def evaluate(self, round_: int) -> EvaluationResult:
        job, federation = self._site.job, self._site.federation()
        broadcast = self._server.broadcast.remote(round_ + 1)
        chunks = self._groups(evaluation_chunks(federation.test_set(), job.eval_batch_size))
        parts = self._gather([partial(_evaluate_shared, to_wire(group), broadcast) for group in chunks])
        personal = None
        if self._opened.keeps_personal:
            devices = self._groups(list(range(job.num_devices)))
            own = self._gather([partial(_evaluate_personal, group, broadcast) for group in devices])
            personal = dict(enumerate(own))
        return assemble_evaluation(federation, job.eval_batch_size, parts, personal)

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
        job = self._site.job
        self._connect()
        self.placement = decide(self._config, job.num_devices, self._resources())
        self._pool = self._make_pool()
        # No CPU of its own: device actors may hold all of them, and the server works while they wait.
        self._server = ray.remote(ServerActor).options(num_cpus=0, max_restarts=0).remote(job, self._site.threads)
        initial, layout = self._describe()
        self._ask(self._server.start.remote(initial, layout))
        return layout

    def _result(self, names: frozenset[str], scores: Any, layout: Layout, reports: list[DeviceReport]) -> OpenResult:
        method = self._site.job.method
        own, frozen = method.has_own_models, method.mask.freezes
        self._opened = OpenResult(reports, names, layout, from_wire(scores), own, frozen)
        return self._opened

    def _connect(self) -> None:
        """Joins the cluster, or starts a local one that ends with this fleet; a session that is on already is used."""
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        local = self._config.address is None
        _check_reachable(self._config.address)
        try:
            ray.init(
                address="local" if local else self._config.address,
                include_dashboard=False if local else None,
                object_store_memory=self._config.object_store_mb * 1_000_000 if local else None,
                # Workers of a local cluster inherit this process's environment; a runtime_env would start them anew.
                runtime_env=None if local else {"env_vars": OFFLINE_ENV},
                log_to_driver=False,
                logging_level="ERROR",
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise FleetError(f"fleet.address: {self._config.address or 'local cluster'}: {error}") from error
        self._owns_ray = True

    def _resources(self) -> Resources:
        have = ray.cluster_resources()
        memory = have.get("memory", 0.0)
        if self._config.address is None:
            memory = min(memory or math.inf, psutil.virtual_memory().available)
        return Resources(have.get("CPU", 0.0), have.get("GPU", 0.0), int(memory))

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

    def _describe(self) -> tuple[Any, Layout]:
        assert self._pool is not None
        call = Call(0, lambda actor, attempt: [actor.describe.remote()])
        ((_, refs),) = self._pool.run([call])
        described: tuple[Any, Layout] = self._ask(refs[0])
        return described

    def _map(
        self, stage: str, devices: Sequence[int], submit: Callable[[int, Any, int], list[ray.ObjectRef]]
    ) -> list[list[ray.ObjectRef]]:
        """Calls submit(device, actor, attempt) for each device; the refs come back in the order of `devices`."""
        assert self._pool is not None
        calls = [Call(device, partial(submit, device), self._home(device)) for device in devices]
        ended = {}
        for key, refs in self._pool.run(calls):
            ended[key] = refs
            self._progress(stage, len(ended), len(devices))
        return [ended[device] for device in devices]

    def _gather(self, submits: list[Callable[[Any, int], list[ray.ObjectRef]]]) -> list[Predictions]:
        """The lists of predictions that the calls return, joined in the order of the calls."""
        assert self._pool is not None
        ended = dict(self._pool.run([Call(i, submit) for i, submit in enumerate(submits)]))
        return [part for i in range(len(submits)) for part in from_wire(self._ask(ended[i][0]))]

    def _groups(self, items: list[Any]) -> list[list[Any]]:
        size = max(1, math.ceil(len(items) / (CALLS_PER_ACTOR * self.placement.num_actors)))
        return [items[i : i + size] for i in range(0, len(items), size)]

    def _home(self, device: int) -> int | None:
        return device if self.placement.per_device else None

    def _ask(self, ref: ray.ObjectRef) -> Any:
        try:
            return get(ref, self._config.device_timeout_s)
        except LOST as error:
            raise FleetError(f"the server actor or one of its updates was lost: {error}") from error


def _check_reachable(address: str | None) -> None:
    """Raises ConfigError if nobody listens at host:port; Ray itself would go on trying for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if not colon or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(
            f"fleet.address: no cluster answers at {address} ({error}); give the host:port that `ray start --head` "
            "printed, or auto, or leave it out for a local cluster"
        ) from error


def _open(device: int, actor: Any, attempt: int) -> list[ray.ObjectRef]:
    refs: list[ray.ObjectRef] = actor.open.options(num_returns=2).remote(device, attempt)
    return refs


def _train(plan: RoundPlan, broadcast: ray.ObjectRef, device: int, actor: Any, attempt: int) -> list[ray.ObjectRef]:
    refs: list[ray.ObjectRef] = actor.train.options(num_returns=2).remote(plan, device, broadcast, attempt)
    return refs


def _evaluate_shared(chunks: Any, broadcast: ray.ObjectRef, actor: Any, attempt: int) -> list[ray.ObjectRef]:
    return [actor.evaluate_shared.remote(chunks, broadcast)]


def _evaluate_personal(devices: list[int], broadcast: ray.ObjectRef, actor: Any, attempt: int) -> list[ray.ObjectRef]:
    return [actor.evaluate_personal.remote(devices, broadcast)]
