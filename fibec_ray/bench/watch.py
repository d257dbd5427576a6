"""Runs one command to its end, and measures its start time and peak memory from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

INTERVAL_S, SHARE = 0.5, 0.01
"""Minimum seconds between two readings of memory, and the maximum share of one core that readings may take. A reading
uses the cores that are measured: 40 to 50 ms for 1 GB in nine processes."""
ALONE = {
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "RAY_AUTH_MODE": "disabled",  # else Ray writes a token to the user's home
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
}
"""Environment of every contender: one thread per process, no network, no telemetry."""


@dataclass(frozen=True)
class Watched:
    """Start time and memory of a command that has ended."""

    started: float
    """seconds since the epoch, when the process was made"""
    peak_bytes: int
    """of the process and all its descendants at once; pages that several share are counted once (PSS)"""
    driver_bytes: int
    """the most that the process itself had resident (RSS), shared pages included"""


class CommandError(Exception):
    """A command failed or took too long; the message is the end of its output."""


def watch(command: Sequence[str], folder: Path, env: Mapping[str, str], limit_s: float) -> Watched:
    """Run the command in `folder`, with its output in `output.txt`. Raises CommandError."""
    started, peak, driver = time.time(), 0, 0
    with (folder / "output.txt").open("wb") as output:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **ALONE, **env},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            while child.poll() is None and time.time() - started < limit_s:
                before = time.process_time()
                total, own = memory_bytes(child.pid)
                peak, driver = max(peak, total), max(driver, own)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(max(INTERVAL_S, (time.process_time() - before) / SHARE))
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)  # its own group: Ray's processes end with their driver
                child.wait()
    if child.returncode != 0:
        raise CommandError(f"exit code {child.returncode}: {_tail(folder / 'output.txt')}")
    return Watched(started, peak, driver)


def memory_bytes(pid: int) -> tuple[int, int]:
    """PSS of the process and its descendants, and RSS of the process itself."""
    try:
        root = psutil.Process(pid)
        own = root.memory_info().rss
        return sum(_pss(process) for process in [root, *root.children(recursive=True)]), own
    except psutil.Error:
        return 0, 0


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:  # gone in the meantime
        return 0


def _tail(path: Path, num_lines: int = 5) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-num_lines:])
