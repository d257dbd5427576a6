"""Runs child processes, a few at a time. None outlives the process that started them."""

from __future__ import annotations

import os
import subprocess
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fibec_ray.interrupts import signals_interrupt

POLL_S = 0.1
GRACE_S = 20.0
"""seconds that a child may take to close its fleet after the signal to stop"""


@dataclass(frozen=True)
class Task:
    """A child process to start, and what to do before and after it."""

    prepare: Callable[[], None]
    """called right before the start"""
    command: Sequence[str]
    log: Path
    """gets what the child prints, both streams"""
    ended: Callable[[int, float], None]
    """called with the exit code (negative: the number of the signal that ended it) and the seconds it took"""


def run_all(tasks: Sequence[Task], jobs: int) -> None:
    """Start tasks in order, `jobs` at a time. All children are stopped when this ends, by Ctrl-C and SIGTERM too."""
    waiting, active = deque(tasks), list[tuple[Task, subprocess.Popen[bytes], float]]()
    with signals_interrupt():
        try:
            while waiting or active:
                while waiting and len(active) < jobs:
                    task = waiting.popleft()
                    task.prepare()
                    active.append((task, _start(task), time.monotonic()))
                time.sleep(POLL_S)
                for entry in [entry for entry in active if entry[1].poll() is not None]:
                    active.remove(entry)
                    task, child, started = entry
                    task.ended(child.returncode, time.monotonic() - started)
        finally:
            _stop([child for _, child, _ in active])


def _start(task: Task) -> subprocess.Popen[bytes]:
    """Start in a new session, so that Ctrl-C reaches the parent only, which then stops its children in order."""
    with task.log.open("wb") as log:
        return subprocess.Popen(
            task.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )


def _stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.terminate()
    deadline = time.monotonic() + GRACE_S
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
