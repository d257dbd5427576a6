"""Start and stop a Ray cluster for one run on this machine, and explain a failed start."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten

import psutil
import ray
from ray._private import ray_constants
from ray._private.node import Node

from fibec_ray.errors import CapacityError, ClusterError
from fibec_ray.fleets.ray.init import LONGEST, Note, captured_stderr, first_line, init
from fibec_ray.fleets.ray.scratch import Scratch
from fibec_ray.fleets.ray.scratch import make as make_scratch
from fibec_ray.fleets.ray.token import ensure_token
from fibec_ray.fleets.settings import FleetConfig

STOP_S = 5
"""Seconds that a local cluster's processes have to end by themselves, and again after SIGTERM."""
SMALLER_STORE = "lower it (80 MB is the least), or set fleet.kind=local to run without Ray"
TRY_AGAIN = "try again when the machine has more to spare, or set fleet.kind=local to run without Ray"
SAYS_ERROR = re.compile(r"\d [EFC] \d+ \d+\] (?:\([^)]*\) )?")
"""Start of an error line in the logs of Ray's C++ code: ... 123456 E 4711 4711] (raylet) main.cc:1: ..."""


def start(config: FleetConfig, note: Note) -> Scratch:
    """Start a Ray cluster on this machine. Returns its scratch folder."""
    refuse_large_store(config)
    told = ensure_token(os.environ)
    scratch = make_scratch(os.environ)
    for line in filter(None, (told, scratch.note, _slow_store(config))):
        note(line)
    with captured_stderr() as said:
        try:
            with _on_loopback(), _without_services():
                init(
                    address="local",
                    include_dashboard=False,
                    object_store_memory=config.object_store_mb * 1_000_000,
                    _temp_dir=str(scratch.path),
                )
        except BaseException as error:
            stop(scratch.path)
            why = f"{first_line(error)}{_last_words(scratch.path, said())}"
            scratch.remove()
            if not isinstance(error, Exception):
                raise
            raise ClusterError(f"fleet: Ray could not start a local cluster: {why}; {TRY_AGAIN}") from error
    return scratch


def refuse_large_store(config: FleetConfig) -> None:
    """Raises CapacityError for an object store that does not fit on this machine."""
    asked, free = config.object_store_mb * 1_000_000, psutil.virtual_memory().available
    if asked > free:
        raise CapacityError(f"{_store(config)}, and {_mb(free)} of memory are free; {SMALLER_STORE}")
    if asked > max(ray_constants.REQUIRE_SHM_SIZE_THRESHOLD, shared := _shared_memory()):
        raise CapacityError(
            f"{_store(config)}, and /dev/shm has {_mb(shared)} free; {SMALLER_STORE}, or enlarge /dev/shm "
            "(in Docker: --shm-size)"
        )


def _slow_store(config: FleetConfig) -> str | None:
    """A line about an object store that Ray puts on the disk because shared memory is too small; None if it fits."""
    shared = _shared_memory()
    if config.object_store_mb * 1_000_000 <= shared:
        return None
    return (
        f"{_store(config)} is on the disk, which is slow: /dev/shm has {_mb(shared)} free; lower it, or enlarge "
        "/dev/shm (in Docker: --shm-size)"
    )


def _store(config: FleetConfig) -> str:
    return f"fleet.object_store_mb: Ray's object store of {config.object_store_mb} MB"


def _mb(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:.0f} MB"


def _shared_memory() -> float:
    """Free bytes of /dev/shm; no limit on systems without it."""
    try:
        return psutil.disk_usage("/dev/shm").free
    except OSError:
        return math.inf


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Make a new cluster listen on 127.0.0.1 only, as Ray does on macOS and Windows. Passing the address does not work:
    Ray replaces init(_node_ip_address="127.0.0.1") by the network's address."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


SERVICES = ("start_monitor", "start_log_monitor", "start_api_server")
"""Methods of Ray's Node that start processes which a run has no use for: the autoscaler, the reader of logs for drivers
that print them, and the web server. They cost 1.4 s of CPU and 1 s of waiting. Prometheus needs none of them."""


@contextmanager
def _without_services() -> Iterator[None]:
    """Make a new cluster start without SERVICES. `ray.init` has no settings for them."""
    before = {name: getattr(Node, name) for name in SERVICES if hasattr(Node, name)}
    for name in before:
        setattr(Node, name, lambda node, **settings: None)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


def stop(folder: Path) -> None:
    """Stop a local cluster, even if half started, and wait until none of its processes can write to its folder."""
    found = _processes(folder)
    with suppress(Exception):
        ray.shutdown()
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in _still_alive(found, STOP_S):
            with suppress(psutil.Error):
                end(process)
    _still_alive(found, STOP_S)


def _processes(folder: Path) -> list[psutil.Process]:
    """Child processes that were started for this folder, with their children."""
    roots = [child for child in psutil.Process().children() if _names(child, folder)]
    found = list(roots)
    for root in roots:
        with suppress(psutil.Error):
            found += root.children(recursive=True)
    return found


def _still_alive(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """The processes that do not end in time. A zombie counts as ended; our own children are collected."""
    deadline = time.monotonic() + seconds
    while (left := [process for process in processes if _is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def _is_alive(process: psutil.Process) -> bool:
    try:
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return True
        process.wait(timeout=0)
    except psutil.Error:
        pass
    return False


def _names(process: psutil.Process, folder: Path) -> bool:
    try:
        return any(str(folder) in argument for argument in process.cmdline())
    except psutil.Error:
        return False


def _last_words(folder: Path, stderr: str) -> str:
    """The first error that one of Ray's processes logged, in brackets; '' if none did."""
    logs = [
        _read(path) for name in ("gcs_server", "raylet") for path in sorted(folder.glob(f"session_2*/logs/{name}*"))
    ]
    lines = [line for text in (*logs, stderr) for line in text.splitlines() if SAYS_ERROR.search(line)]
    return f" ({shorten(SAYS_ERROR.split(lines[0])[-1], LONGEST)})" if lines else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
