"""Join a Ray cluster or start a local one, and report its resources."""

from __future__ import annotations

import math
import os
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
from ray._private.utils import get_num_cpus

from fibec_ray.environment import drop_empty, set_default
from fibec_ray.errors import ClusterError
from fibec_ray.fleets import gpus
from fibec_ray.fleets.placement import Resources
from fibec_ray.fleets.ray import address, local_cluster
from fibec_ray.fleets.ray.init import captured_stderr, first_line, init, on_loopback
from fibec_ray.fleets.ray.local_cluster import TRY_AGAIN, LocalCluster, Note, memory_taken
from fibec_ray.fleets.ray.token import protect_token
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.interrupts import handlers_kept


@dataclass(frozen=True)
class Session:
    """A connection to a cluster. local: a cluster that ends with the session. ours: `close` ends the connection."""

    local: LocalCluster | None = None
    ours: bool = True

    def close(self, logs_to: Path | None = None) -> None:
        """Disconnect; stop a local cluster and remove its folder. logs_to: where to keep its logs."""
        if not self.ours:
            return
        with suppress(Exception) if self.local else nullcontext():
            ray.shutdown()
        if self.local:
            self.local.stop(logs_to)


@handlers_kept()
def connect(config: FleetConfig, note: Note = lambda text: None, local: LocalCluster | None = None) -> Session:
    """Join the cluster of fleet.address or a local one. An open session is used as it is.

    note: takes a line about what was done differently from the settings. local: a local cluster that was started
    before; None: start one. Raises ConfigError, CapacityError or ClusterError. A failed start cleans up after itself.
    """
    if ray.is_initialized():
        return Session(ours=False)
    drop_empty(os.environ)
    set_default("RAY_USAGE_STATS_ENABLED", "0")
    if config.address is None:
        return _join_local(local or local_cluster.start(config, note))
    return _join(config.address, note)


def resources(config: FleetConfig) -> Resources:
    """The resources that actors may use. On a local cluster, at most the memory that is free now."""
    have = ray.cluster_resources()
    memory = have.get("memory", 0.0)
    if config.address is None:
        memory = min(memory or math.inf, psutil.virtual_memory().available + memory_taken())
    num_gpus = 0.0 if config.address is None and gpus.unusable(config) else have.get("GPU", 0.0)
    gpu_memory = gpus.smallest(gpus.visible()) if num_gpus and config.address is None else None
    return Resources(have.get("CPU", 0.0), num_gpus, int(memory), gpu_memory)


def foreseen(config: FleetConfig) -> Resources:
    """The resources that a fleet will find, without waiting for a local cluster.

    Raises what `connect` raises when joining a cluster, and CapacityError for an object store that does not fit.
    """
    if ray.is_initialized() or config.address is not None:
        with closing(connect(config)):
            return resources(config)
    local_cluster.refuse_large_store(config)
    memory = psutil.virtual_memory().available + memory_taken() - config.object_store_mb * 1_000_000
    here = [] if gpus.unusable(config) else gpus.visible()
    return Resources(float(get_num_cpus()), float(len(here)), memory, gpus.smallest(here))


def num_nodes(config: FleetConfig) -> int:
    """Number of live nodes of the cluster that this process joined; 1 for a local cluster."""
    return sum(node["Alive"] for node in ray.nodes()) if config.address is not None and ray.is_initialized() else 1


def _join_local(local: LocalCluster) -> Session:
    """Join a local cluster when it has started. Ends it if joining fails."""
    try:
        host_port = local.address()
        with captured_stderr(), on_loopback():
            ray._raylet.Config.initialize("")  # RAY_AUTH_MODE may have been set after Ray was imported
            init(address=host_port)
    except BaseException as error:
        with suppress(Exception):
            ray.shutdown()
        local.abandon()
        if isinstance(error, ClusterError) or not isinstance(error, Exception):
            raise
        why = first_line(error)
        raise ClusterError(f"fleet: Ray could not start a local cluster: {why}; {TRY_AGAIN}") from error
    return Session(local)


def _join(where: str, note: Note) -> Session:
    host_port = address.resolve(where)
    address.refuse_silence(host_port)
    if told := protect_token(os.environ):
        note(told)
    with captured_stderr():
        try:
            init(address=host_port)
        except BaseException as error:
            with suppress(Exception):
                ray.shutdown()
            if not isinstance(error, Exception):
                raise
            raise ClusterError(f"fleet.address: {where}: {first_line(error)}; {address.HELP}") from error
    return Session()
