"""Wait until a cluster has enough nodes for a fleet, and prepare base weights on each."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fibec_ray.errors import FleetError
from fibec_ray.fleets.ray.failures import LOST, get
from fibec_ray.fleets.settings import ActorClass, FleetConfig
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.types import Products

POLL_S = 2.0
SAME_BASE = (
    "give a revision (backbone.revision) or a folder that all nodes see, and the same versions of torch and "
    "transformers on every node"
)


def await_nodes(config: FleetConfig) -> None:
    """Ask an autoscaling cluster, which may have no nodes yet, for the resources that the configured actors need.

    If the number of actors follows from the cluster, the cluster must have a node. Raises FleetError if it has none, or
    if the requested resources do not arrive within startup_timeout_s.
    """
    if config.address is None:
        return
    bundles = _bundles(config)
    if not bundles:
        _refuse_emptiness()
        return
    wanted = {name: sum(bundle.get(name, 0) for bundle in bundles) for name in set().union(*bundles)}
    if _missing(wanted):
        from ray.autoscaler.sdk import request_resources

        request_resources(bundles=bundles)
        try:
            _wait(wanted, config)
        finally:
            request_resources(bundles=[])  # from now on actors keep the nodes busy; idle ones may be removed


def _bundles(config: FleetConfig) -> list[dict[str, float]]:
    """The resources of each actor; [] if the number of actors follows from the cluster."""
    if config.classes:
        return [each.bundle for each in config.classes for _ in range(each.num_actors)]
    if config.num_actors is None:
        return []
    cpus, gpus = config.cpus_per_actor or 1.0, config.gpus or float(config.device == "cuda" and config.gpus is None)
    alike = ActorClass(share=1, num_actors=config.num_actors, cpus_per_actor=cpus, gpus_per_actor=gpus)
    return [alike.bundle] * config.num_actors


def _refuse_emptiness() -> None:
    have = ray.cluster_resources()
    if not have.get("CPU") and not have.get("GPU"):
        raise FleetError(
            "fleet.num_actors: the cluster has no node for devices yet, so the number of actors is unknown; set "
            "fleet.placement=pooled fleet.num_actors=N (and fleet.gpus_per_actor), and the cluster will add nodes"
        )


def _wait(wanted: dict[str, float], config: FleetConfig) -> None:
    deadline = time.monotonic() + config.startup_timeout_s
    while missing := _missing(wanted):
        if time.monotonic() > deadline:
            where = "classes" if config.classes else "num_actors"
            raise FleetError(
                f"fleet.{where}: {len(_bundles(config))} actors need {missing} after {config.startup_timeout_s:g} s of "
                "waiting for nodes; lower it or what each asks for, or raise fleet.startup_timeout_s"
            )
        time.sleep(POLL_S)


def _missing(wanted: dict[str, float]) -> str:
    """'6 CPU (the cluster has 4)', or ''."""
    have: dict[str, float] = ray.cluster_resources()
    lacking = [
        f"{amount:g} {name} (the cluster has {have.get(name, 0):g})"
        for name, amount in wanted.items()
        if amount > have.get(name, 0) + 1e-6
    ]
    return ", ".join(lacking)


def prepare_nodes(worker_spec: WorkerSpec, timeout_s: float) -> int:
    """Prepare base weights on every node that can have actors, in parallel; returns the number of nodes.

    On a single node the first actor prepares them for all. With several nodes, a node without the weights is found
    before any actor starts, and the actors' startup timeout need not cover a download.
    """
    hosts = _hosts("CPU", "GPU")
    if not worker_spec.job.backbone.has_base or len(hosts) < 2:
        return 0
    prepare = ray.remote(num_cpus=0, max_retries=2)(WorkerSpec.base_fingerprint)
    refs = [prepare.options(scheduling_strategy=_on(node)).remote(worker_spec) for node in hosts]
    found = dict(zip((node["NodeManagerAddress"] for node in hosts), _await(refs, timeout_s), strict=True))
    refuse_different(found)
    return len(hosts)


def find_products(worker_spec: WorkerSpec, config: FleetConfig) -> Products | None:
    """What multiplies frozen layers on CPUs (`fleet.products`), by a trial on one node if it is not configured.

    All actors use the result, including those that restart or join later. None if nothing is frozen.
    """
    hosts = _hosts("CPU")
    here = ray.get_runtime_context().get_node_id()
    if config.products != "auto" or not hosts or any(node["NodeID"] == here for node in hosts):
        return worker_spec.find_products()
    trial = ray.remote(num_cpus=0, max_retries=2)(WorkerSpec.find_products)
    try:
        found: Products | None = get(
            trial.options(scheduling_strategy=_on(hosts[0])).remote(worker_spec), config.startup_timeout_s
        )
    except LOST as error:
        raise FleetError(
            f"fleet.products: the trial on node {hosts[0]['NodeManagerAddress']} gave no answer within "
            f"{config.startup_timeout_s:g} s ({type(error).__name__}); set fleet.products to onednn or torch, raise "
            "fleet.startup_timeout_s, or see Ray's logs on the node"
        ) from error
    return found


def _hosts(*names: str) -> list[dict[str, Any]]:
    """The live nodes with any of these resources. A head that is reserved for server and log has no CPU and no GPU."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    return [node for node in alive if any(node["Resources"].get(name, 0) > 0 for name in names)]


def _on(node: Mapping[str, Any]) -> NodeAffinitySchedulingStrategy:
    return NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)


def _await(refs: list[ray.ObjectRef], timeout_s: float) -> list[str]:
    try:
        found: list[str] = get(refs, timeout_s)
    except LOST as error:
        raise FleetError(
            f"backbone: a node did not have its base weights within {timeout_s:g} s ({type(error).__name__}); raise "
            "fleet.startup_timeout_s where they are large or downloads slow, or see Ray's logs on the nodes"
        ) from error
    return found


def refuse_different(fingerprints: Mapping[str, str]) -> None:
    """Raises FleetError unless all nodes have the same base weights. fingerprints: by node."""
    first, *others = fingerprints
    for other in others:
        if fingerprints[other] != fingerprints[first]:
            raise FleetError(f"backbone: nodes {first} and {other} have different base weights; {SAME_BASE}")
