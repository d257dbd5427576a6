"""Killing actors by their processes, for tests: this process's children with an actor's title."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable

import psutil

from fibec_ray.learning.run_totals import Row
from fibec_ray.runs.callbacks import Callback


def actors(kind: str) -> list[int]:
    """Process ids of the actors of a class, in order."""
    found = psutil.Process().children(recursive=True)
    return sorted(process.pid for process in found if kind in _command(process))


def kill(kind: str, rng: random.Random | None = None, count: int = 1) -> list[int]:
    """Send SIGKILL to `count` random actors, or to all without `rng`, since one of an earlier run may still be ending.

    Returns their process ids.
    """
    alive = actors(kind)
    chosen = rng.sample(alive, min(count, len(alive))) if rng else alive
    for pid in chosen:
        os.kill(pid, signal.SIGKILL)
    return chosen


class Reaper(Callback):
    """Watches a run, and does something once in every round that is asked for, after so many of its devices.

    strike: told the round; called as the round's `at`-th device is done, but the last one's successors.
    """

    def __init__(self, strike: Callable[[int], object], at: Callable[[int], int] = lambda round_: 1):
        self._strike, self._at = strike, at
        self._round, self.struck = -1, set[int]()
        self.notes: list[str] = []

    def on_round_end(self, row: Row) -> None:
        self._round = row["round"] + 1

    def on_progress(self, stage: str, done: int, total: int) -> None:
        if stage == "train" and done >= self._at(self._round) and self._round not in self.struck:
            self.struck.add(self._round)
            self._strike(self._round)

    def on_message(self, text: str) -> None:
        self.notes.append(text)


def _command(process: psutil.Process) -> str:
    """Empty for a process that has ended, whether or not its parent has collected it yet."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""
