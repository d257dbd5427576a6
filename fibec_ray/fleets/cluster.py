"""The cluster that a Ray fleet runs on: joining or starting one, and what it has; called by RayFleet."""

from __future__ import annotations

import math
import os
import socket
import subprocess

import psutil
import ray
from ray._private.utils import get_num_cpus

from fibec_ray.errors import ConfigError, FleetError
from fibec_ray.fleets.placement import Resources
from fibec_ray.fleets.settings import FleetConfig

CONNECT_TIMEOUT_S = 5


def connect(config: FleetConfig) -> bool:
    """Joins the cluster, or starts a local one; a session that is on already is used.

    True if the session was opened here, and is the caller's to end. Raises ConfigError or FleetError if there is none.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local = config.address is None
    check_reachable(config.address)
    try:
        ray.init(
            address="local" if local else config.address,
            include_dashboard=False if local else None,
            object_store_memory=config.object_store_mb * 1_000_000 if local else None,
            # No runtime_env of our own: its workers could not be those that Ray keeps ready, and start seconds later.
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise FleetError(f"fleet.address: {config.address or 'local cluster'}: {error}") from error
    return True


def resources(config: FleetConfig) -> Resources:
    """What actors may have; of a local cluster, no more memory than is free now."""
    have = ray.cluster_resources()
    memory = have.get("memory", 0.0)
    if config.address is None:
        memory = min(memory or math.inf, psutil.virtual_memory().available)
    return Resources(have.get("CPU", 0.0), have.get("GPU", 0.0), int(memory))


def foreseen(config: FleetConfig) -> Resources:
    """What a fleet will find when it opens, before it does: no local cluster is started to find out.

    Raises ConfigError or FleetError where a cluster is to be joined and is not there.
    """
    if ray.is_initialized() or config.address is not None:
        opened = connect(config)
        try:
            return resources(config)
        finally:
            if opened:
                ray.shutdown()
    memory = psutil.virtual_memory().available - config.object_store_mb * 1_000_000
    return Resources(float(get_num_cpus()), float(len(gpu_memory())), memory)


def num_nodes(config: FleetConfig) -> int:
    """Those of a cluster that this process is on; a local one has one."""
    return sum(node["Alive"] for node in ray.nodes()) if config.address is not None and ray.is_initialized() else 1


def gpu_memory() -> list[int]:
    """Free bytes of each GPU of this machine that processes started here may use; as its driver's tool says."""
    command = ["nvidia-smi", "--query-gpu=index,memory.free", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return []
    free = {index.strip(): int(mebibytes) * 2**20 for index, mebibytes in (line.split(",") for line in lines)}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [free[index] for index in (free if visible is None else visible.split(",")) if index in free]


def check_reachable(address: str | None) -> None:
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
