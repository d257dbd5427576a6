"""Start and stop a Ray cluster for one run on this machine.

A small process of its own starts and keeps the cluster (head.py), and this file does not import Ray. So while Ray
starts, the driver imports torch and transformers, reads the data and plans the run.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psutil

from fibec_ray.environment import drop_empty, set_default
from fibec_ray.errors import CapacityError, ClusterError
from fibec_ray.fleets.ray import processes
from fibec_ray.fleets.ray.scratch import Scratch
from fibec_ray.fleets.ray.scratch import make as make_scratch
from fibec_ray.fleets.ray.token import ensure_token

if TYPE_CHECKING:  # its module imports torch
    from fibec_ray.fleets.settings import FleetConfig

NEEDS_SHARED_MEMORY = 10_000_000_000
"""Bytes above which Ray rejects an object store that /dev/shm cannot hold."""
HEAD = str(Path(__file__).with_name("run_head.py"))
"""The program that starts a cluster."""
SMALLER_STORE = "lower it (80 MB is the least), or set fleet.kind=local to run without Ray"
TRY_AGAIN = "try again when the machine has more to spare, or set fleet.kind=local to run without Ray"

Note = Callable[[str], None]
"""Takes a line about what was done differently from the settings."""


class ClusterSettings(Protocol):
    """The settings of `fleet` that a local cluster depends on."""

    @property
    def object_store_mb(self) -> int:
        """Size of the object store, 1e6 bytes."""

    @property
    def num_actors(self) -> int | None:
        """Device actors; None: as many as fit."""


@dataclass
class LocalCluster:
    """A local cluster that is starting or has started. End it with `stop`, or with `abandon` before a driver joins."""

    scratch: Scratch
    process: subprocess.Popen[str]
    object_store_mb: int
    preloads: bool
    """True if Ray's workers import torch as soon as they start"""
    ended: bool = False

    def suits(self, config: ClusterSettings, num_devices: int | None) -> bool:
        """True if `start` would start the same cluster."""
        return (self.object_store_mb, self.preloads) == (
            config.object_store_mb,
            _fills_the_machine(config, num_devices),
        )

    def address(self) -> str:
        """Wait until the cluster has started; returns HOST:PORT. Raises ClusterError if it cannot start."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"why": f"its process ended with code {self.process.wait()}"}
        if "address" not in answer:
            raise ClusterError(f"fleet: Ray could not start a local cluster: {answer['why']}; {TRY_AGAIN}")
        return str(answer["address"])

    def stop(self, logs_to: Path | None = None) -> None:
        """End the cluster, kill processes that do not end, and remove its folder. logs_to: where to keep its logs."""
        if self.ended:
            return
        self.ended = True
        found = self._processes()
        self._close_pipes()
        processes.end(found)
        self.scratch.remove(logs_to)

    def abandon(self) -> None:
        """Kill the cluster, even if it is still starting, and remove its folder."""
        if self.ended:
            return
        self.ended = True
        with suppress(psutil.Error):
            psutil.Process(self.process.pid).suspend()  # so that it starts no more processes
        for process in (found := self._processes()):
            with suppress(psutil.Error):
                process.kill()
        self._close_pipes()
        processes.end(found)
        self.scratch.remove()

    def _processes(self) -> list[psutil.Process]:
        """Those that name the folder in their command, and the head, whose command is empty while it begins."""
        found = processes.of(self.scratch.path)
        with suppress(psutil.Error):
            if self.process.poll() is None and (head := psutil.Process(self.process.pid)) not in found:
                found += processes.tree(head)
        return found

    def _close_pipes(self) -> None:
        """The process ends the cluster when its input closes."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


def start(config: ClusterSettings, note: Note, num_devices: int | None = None) -> LocalCluster:
    """Start a Ray cluster on this machine in the background. A failed start cleans up after itself.

    num_devices: the most actors that the run can have; None: unknown. Raises CapacityError, ClusterError or
    ConfigError.
    """
    refuse_large_store(config)
    _prepare_environment()
    told = ensure_token(os.environ)
    scratch = make_scratch(os.environ)
    store, preload = config.object_store_mb * 1_000_000, _fills_the_machine(config, num_devices)
    # -P: a user's queue.py or random.py in the working directory must not shadow Python's.
    command = [sys.executable, *_site_flags(), "-P", HEAD, str(scratch.path), str(store), str(int(preload))]
    try:
        for line in filter(None, (told, scratch.note, _slow_store(config))):
            note(line)
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            process_group=0,  # the terminal's Ctrl-C is for the driver
        )
    except BaseException:
        scratch.remove()
        raise
    return LocalCluster(scratch, process, config.object_store_mb, preload)


@contextmanager
def started_early(
    config: FleetConfig, num_devices: int, note: Note, waiting: LocalCluster | None = None
) -> Iterator[LocalCluster | None]:
    """A local cluster for the run in this block; None if it needs none. Nothing is left if the run fails early.

    waiting: a cluster that was started before the settings were checked. It is used if it suits them, else abandoned.
    """
    ray = sys.modules.get("ray")
    needed = config.kind == "ray" and config.address is None and not (ray is not None and ray.is_initialized())
    if waiting is not None and not (needed and waiting.suits(config, num_devices)):
        waiting.abandon()
        waiting = None
    if not needed:
        yield None
        return
    cluster = waiting or start(config, note, num_devices)
    try:
        yield cluster
    finally:
        cluster.abandon()


def _prepare_environment() -> None:
    drop_empty(os.environ)
    set_default("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's default for new clusters. Set here, so that the driver finds the same when it joins.
    set_default("RAY_AUTH_MODE", "token")


def _fills_the_machine(config: ClusterSettings, num_devices: int | None) -> bool:
    """True if about as many actors as CPUs are expected. Ray starts a worker for each CPU, and a preloaded one that
    never becomes an actor would waste 200 MB."""
    cpus = os.cpu_count() or 1
    actors = cpus if config.num_actors is None else config.num_actors
    return min(actors, num_devices or actors) + 1 >= cpus


def _site_flags() -> list[str]:
    return [flag for flag, on in (("-s", sys.flags.no_user_site), ("-S", sys.flags.no_site)) if on]


def refuse_large_store(config: ClusterSettings) -> None:
    """Raises CapacityError for an object store that does not fit on this machine."""
    asked, free = config.object_store_mb * 1_000_000, psutil.virtual_memory().available
    if asked > free:
        raise CapacityError(f"{_store(config)}, and {_mb(free)} of memory are free; {SMALLER_STORE}")
    if asked > max(NEEDS_SHARED_MEMORY, shared := _shared_memory()):
        raise CapacityError(
            f"{_store(config)}, and /dev/shm has {_mb(shared)} free; {SMALLER_STORE}, or enlarge /dev/shm "
            "(in Docker: --shm-size)"
        )


def memory_taken() -> int:
    """Bytes that this driver's local cluster uses already. Plans count them as needed, so add them to free memory."""
    return sum(map(processes.private_bytes, processes.of(HEAD)))


def _slow_store(config: ClusterSettings) -> str | None:
    """A line about an object store that Ray puts on the disk because shared memory is too small; None if it fits."""
    shared = _shared_memory()
    if config.object_store_mb * 1_000_000 <= shared:
        return None
    return (
        f"{_store(config)} is on the disk, which is slow: /dev/shm has {_mb(shared)} free; lower it, or enlarge "
        "/dev/shm (in Docker: --shm-size)"
    )


def _store(config: ClusterSettings) -> str:
    return f"fleet.object_store_mb: Ray's object store of {config.object_store_mb} MB"


def _mb(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.0f} MB"


def _shared_memory() -> float:
    """Free bytes of /dev/shm; no limit on systems without it."""
    try:
        return psutil.disk_usage("/dev/shm").free
    except OSError:
        return math.inf
