"""The processes of a local Ray cluster: find them, wait for their end, kill them."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

import psutil

STOP_S = 5
"""Seconds that processes have to end by themselves, and again after SIGTERM."""


def of(mark: Path | str) -> list[psutil.Process]:
    """Child processes with this text in their command, such as a cluster's folder, and all that they started."""
    roots = [child for child in psutil.Process().children() if _names(child, str(mark))]
    return [process for root in roots for process in tree(root)]


def tree(root: psutil.Process) -> list[psutil.Process]:
    """The process and all that it started."""
    with suppress(psutil.Error):
        return [root, *root.children(recursive=True)]
    return [root]


def private_bytes(process: psutil.Process) -> int:
    """Resident memory less what is shared with other processes; 0 if the process is gone."""
    try:
        memory = process.memory_info()
    except psutil.Error:
        return 0
    return max(0, int(memory.rss) - int(getattr(memory, "shared", 0)))


def end(found: list[psutil.Process]) -> None:
    """Wait until the processes have ended. Those that take too long are asked to end, and then killed."""
    for how in (psutil.Process.terminate, psutil.Process.kill):
        for process in still_alive(found, STOP_S):
            with suppress(psutil.Error):
                how(process)
    still_alive(found, STOP_S)


def still_alive(found: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """The processes that do not end in time. A zombie counts as ended; our own children are collected."""
    deadline = time.monotonic() + seconds
    while (left := [process for process in found if is_alive(process)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def is_alive(process: psutil.Process) -> bool:
    """False for a process that has ended; if it is our own child, it is collected."""
    try:
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return True
        process.wait(timeout=0)
    except psutil.Error:
        pass
    return False


def _names(process: psutil.Process, mark: str) -> bool:
    try:
        return any(mark in argument for argument in process.cmdline())
    except psutil.Error:
        return False
