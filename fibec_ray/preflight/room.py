"""What there is: processors, memory and disk, as a run will find them; used by check.py."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from fibec_ray.fleets.gpus import Gpu, visible
from fibec_ray.fleets.placement import Resources
from fibec_ray.fleets.settings import FleetConfig


@dataclass(frozen=True)
class Room:
    """resources: of all nodes. run_disk, cache_disk: free bytes where the run directory and the prepared weights go."""

    resources: Resources
    num_nodes: int
    gpu_memory: int | None
    """free bytes of the smallest GPU; None if there is no GPU, or its memory is unknown"""
    run_disk: int
    cache_disk: int
    same_disk: bool
    base_is_there: bool


def look(config: FleetConfig, folder: Path, cache_dir: Path, base_is_there: bool) -> Room:
    """Raises ConfigError or FleetError where a cluster is to be joined and is not there."""
    run, cache = _existing(folder), _existing(cache_dir)
    same = run.stat().st_dev == cache.stat().st_dev
    disks = shutil.disk_usage(run).free, shutil.disk_usage(cache).free
    if config.kind == "local":
        here = Resources(float(os.cpu_count() or 1), 0.0, psutil.virtual_memory().available)
        return Room(here, 1, None, *disks, same, base_is_there)
    from fibec_ray.fleets import cluster

    resources = cluster.foreseen(config)
    here = visible() if resources.gpus and config.address is None else []
    return Room(resources, cluster.num_nodes(config), smallest(here), *disks, same, base_is_there)


def smallest(gpus: Sequence[Gpu]) -> int | None:
    """Free bytes of the smallest GPU; None if one does not say, or there is none."""
    known = [gpu.free for gpu in gpus if gpu.free is not None]
    return min(known) if known and len(known) == len(gpus) else None


def _existing(path: Path) -> Path:
    """The nearest folder on the way to it that is there."""
    path = path.expanduser().resolve()
    while not path.exists():
        path = path.parent
    return path
