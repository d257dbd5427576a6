"""The processors, memory and disk available to a run."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from fibec_ray.fleets.gpus import smallest, torch_device, visible
from fibec_ray.fleets.placement import Resources
from fibec_ray.fleets.settings import FleetConfig


@dataclass(frozen=True)
class Room:
    """resources: of all nodes. run_disk, cache_disk: free bytes for the run directory and the prepared weights."""

    resources: Resources
    num_nodes: int
    run_disk: int
    cache_disk: int
    same_disk: bool
    base_is_there: bool
    object_store: int = 0
    """bytes of a local cluster's object store, not included in `resources`"""


def look(config: FleetConfig, folder: Path, cache_dir: Path, base_is_there: bool) -> Room:
    """Find the available resources. Raises ConfigError or FleetError if the cluster to join is not there."""
    run, cache = _existing(folder), _existing(cache_dir)
    same = run.stat().st_dev == cache.stat().st_dev
    disks = shutil.disk_usage(run).free, shutil.disk_usage(cache).free
    if config.kind == "local":
        return Room(_this_process(config), 1, *disks, same, base_is_there)
    from fibec_ray.fleets.ray import cluster

    resources, nodes = cluster.foreseen(config), cluster.num_nodes(config)
    store = config.object_store_mb * 1_000_000 if config.address is None else 0
    return Room(resources, nodes, *disks, same, base_is_there, store)


def _this_process(config: FleetConfig) -> Resources:
    cpus, memory = float(os.cpu_count() or 1), psutil.virtual_memory().available
    if torch_device(config.gpus, torch.cuda.is_available(), config.device) == "cpu":
        return Resources(cpus, 0.0, memory)
    here = visible()
    return Resources(cpus, float(max(1, len(here))), memory, smallest(here[:1]))


def _existing(path: Path) -> Path:
    """The nearest existing parent folder."""
    path = path.expanduser().resolve()
    while not path.exists():
        path = path.parent
    return path
