"""Collect garbage in larger steps. Python's default steps cost 0.7 s of the 3 s that torch and transformers import."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

STEPS = (20_000, 50, 100)
"""Thresholds of `gc.set_threshold`. Switched off, it would leave 230,000 dead objects of the imports in memory."""


def collect_in_large_steps() -> None:
    """Set this process's thresholds. For processes that belong to a run: the command, and Ray's workers."""
    gc.set_threshold(*STEPS)


@contextmanager
def large_steps() -> Iterator[None]:
    """The same within a block, for code that runs in a user's process."""
    before = gc.get_threshold()
    collect_in_large_steps()
    try:
        yield
    finally:
        gc.set_threshold(*before)
