"""Joins a Ray cluster or starts a local one, and says what it has; called by RayFleet and preflight/room.py."""

from __future__ import annotations

import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import IO, Any

import psutil
import ray
from ray._private import ray_constants
from ray._private.utils import get_num_cpus
from ray.job_config import JobConfig

from fibec_ray.environment import drop_empty, set_default
from fibec_ray.errors import CapacityError, ClusterError
from fibec_ray.fleets import address, gpus
from fibec_ray.fleets.placement import Resources
from fibec_ray.fleets.ray_token import ensure_token, protect_token
from fibec_ray.fleets.scratch import Scratch
from fibec_ray.fleets.scratch import make as make_scratch
from fibec_ray.fleets.settings import FleetConfig
from fibec_ray.interrupts import handlers_kept

STOP_S = 5
"""Seconds that a local cluster's processes have to end by themselves, and then again when they are told to."""
SMALLER_STORE = "lower it (80 MB is the least), or set fleet.kind=local to run without Ray"
TRY_AGAIN = "try again when the machine has more to spare, or set fleet.kind=local to run without Ray"
LONGEST = 300
"""Characters of a reason that Ray gives; some are pages of advice on other things."""
SAYS_ERROR = re.compile(r"\d [EFC] \d+ \d+\] (?:\([^)]*\) )?")
"""The beginning of a line of error in the logs of Ray's C++ parts: ... 123456 E 4711 4711] (raylet) main.cc:1: ..."""

Note = Callable[[str], None]


@dataclass(frozen=True)
class Session:
    """A connection to a cluster. scratch: of a local cluster that `connect` started. ours: `close` ends it."""

    scratch: Scratch | None = None
    ours: bool = True

    def close(self, logs_to: Path | None = None) -> None:
        """Disconnect; a local cluster stops, and its folder goes. logs_to: where its logs are kept."""
        if not self.ours:
            return
        if self.scratch is None:
            ray.shutdown()
            return
        _stop(self.scratch.path)
        self.scratch.remove(logs_to)


@handlers_kept()
def connect(config: FleetConfig, note: Note = lambda text: None) -> Session:
    """Join the cluster of fleet.address, or start a local one. A session that is already open is used as it is.

    note: takes a line about what was done differently than asked. Raises ConfigError, CapacityError or ClusterError if
    there is no cluster; nothing is left behind then.
    """
    if ray.is_initialized():
        return Session(ours=False)
    drop_empty(os.environ)
    set_default("RAY_USAGE_STATS_ENABLED", "0")
    return _start_local(config, note) if config.address is None else _join(config.address, note)


def resources(config: FleetConfig) -> Resources:
    """What actors may have. On a local cluster that is no more memory than is free now."""
    have = ray.cluster_resources()
    memory = have.get("memory", 0.0)
    if config.address is None:
        memory = min(memory or math.inf, psutil.virtual_memory().available)
    num_gpus = have.get("GPU", 0.0)
    gpu_memory = gpus.smallest(gpus.visible()) if num_gpus and config.address is None else None
    return Resources(have.get("CPU", 0.0), num_gpus, int(memory), gpu_memory)


def foreseen(config: FleetConfig) -> Resources:
    """What a fleet will find when it opens. No local cluster is started to find out.

    Raises what `connect` raises if a cluster is to be joined, and CapacityError for an object store that does not fit.
    """
    if ray.is_initialized() or config.address is not None:
        session = connect(config)
        try:
            return resources(config)
        finally:
            session.close()
    _refuse_large_store(config)
    memory = psutil.virtual_memory().available - config.object_store_mb * 1_000_000
    here = gpus.visible()
    return Resources(float(get_num_cpus()), float(len(here)), memory, gpus.smallest(here))


def num_nodes(config: FleetConfig) -> int:
    """Nodes of the cluster that this process is on; 1 for a local cluster."""
    return sum(node["Alive"] for node in ray.nodes()) if config.address is not None and ray.is_initialized() else 1


def _start_local(config: FleetConfig, note: Note) -> Session:
    _refuse_large_store(config)
    told = ensure_token(os.environ)
    scratch = make_scratch(os.environ)
    for line in filter(None, (told, scratch.note, _slow_store(config))):
        note(line)
    with _captured_stderr() as said:
        try:
            with _on_loopback():
                _init(
                    address="local",
                    include_dashboard=False,
                    object_store_memory=config.object_store_mb * 1_000_000,
                    _temp_dir=str(scratch.path),
                )
        except BaseException as error:
            _stop(scratch.path)
            why = f"{_first_line(error)}{_last_words(scratch.path, said())}"
            scratch.remove()
            if not isinstance(error, Exception):
                raise
            raise ClusterError(f"fleet: Ray could not start a local cluster: {why}; {TRY_AGAIN}") from error
    return Session(scratch)


def _refuse_large_store(config: FleetConfig) -> None:
    """Raises CapacityError for an object store that this machine has no room for."""
    asked, free = config.object_store_mb * 1_000_000, psutil.virtual_memory().available
    if asked > free:
        raise CapacityError(f"{_store(config)}, and {_mb(free)} of memory are free; {SMALLER_STORE}")
    if asked > max(ray_constants.REQUIRE_SHM_SIZE_THRESHOLD, shared := _shared_memory()):
        raise CapacityError(
            f"{_store(config)}, and /dev/shm has {_mb(shared)} free; {SMALLER_STORE}, or enlarge /dev/shm "
            "(in Docker: --shm-size)"
        )


def _slow_store(config: FleetConfig) -> str | None:
    """A line about an object store that Ray puts on the disk, because shared memory is too small."""
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


def _join(where: str, note: Note) -> Session:
    host_port = address.resolve(where)
    address.refuse_silence(host_port)
    if told := protect_token(os.environ):
        note(told)
    with _captured_stderr():
        try:
            _init(address=host_port)
        except BaseException as error:
            with suppress(Exception):
                ray.shutdown()
            if not isinstance(error, Exception):
                raise
            raise ClusterError(f"fleet.address: {where}: {_first_line(error)}; {address.HELP}") from error
    return Session()


def _init(**settings: Any) -> None:
    # No runtime_env of our own: its workers could not be those that Ray keeps ready, and would start seconds later.
    ray.init(log_to_driver=False, logging_level="ERROR", job_config=_job_config(), **settings)


def _job_config() -> JobConfig:
    """Keeps the working directory off the workers' sys.path, unless the driver has it there too.

    Ray puts it in front, where a user's queue.py or random.py takes the place of Python's. It leaves the path of a job
    of a Ray client alone.
    """
    here = {os.path.abspath(folder) for folder in sys.path if isinstance(folder, str)}
    return JobConfig(_client_job=os.getcwd() not in here)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Has a new cluster listen on 127.0.0.1 alone, as Ray does on macOS and Windows. It takes no address from us:
    init(_node_ip_address="127.0.0.1") is replaced by that of the network."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Catches what is written to file descriptor 2, which Ray's C++ parts write to, and gives what has come so far."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: _content(file)
        finally:
            os.dup2(before, 2)
            os.close(before)


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def _stop(folder: Path) -> None:
    """Ends a local cluster, whole or half started, and waits until none of its processes can write to its folder."""
    found = _processes(folder)
    with suppress(Exception):
        ray.shutdown()
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for process in _still_alive(found, STOP_S):
            with suppress(psutil.Error):
                end(process)
    _still_alive(found, STOP_S)


def _processes(folder: Path) -> list[psutil.Process]:
    """Those of our children that name the folder, and what they have started."""
    roots = [child for child in psutil.Process().children() if _names(child, folder)]
    found = list(roots)
    for root in roots:
        with suppress(psutil.Error):
            found += root.children(recursive=True)
    return found


def _still_alive(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that do not end in this time. A zombie has ended; our own are collected."""
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


def _first_line(error: BaseException) -> str:
    """Its sentence, or its name where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten(lines[0], LONGEST).rstrip(".;:") if lines else type(error).__name__


def _last_words(folder: Path, stderr: str) -> str:
    """The first error that one of Ray's processes wrote, in brackets; '' if none did."""
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
