"""Which methods a run of the fast tests takes: a few for each check, drawn by the commit, so that all have their turn.

The slow suite (`make test-all`) takes all of them. Set FIBEC_RAY_SAMPLE to draw again what an earlier run drew; pytest
prints the value of each run at its end.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Sequence
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any

import pytest


@cache
def seed() -> str:
    """FIBEC_RAY_SAMPLE, else the commit of this checkout, else the date."""
    if given := os.environ.get("FIBEC_RAY_SAMPLE"):
        return given
    try:
        command = ["git", "rev-parse", "--short=12", "HEAD"]
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return date.today().isoformat()
    return done.stdout.strip() or date.today().isoformat()


def chosen(cases: Sequence[Any], how_many: int, purpose: str) -> list[Any]:
    """So many of the cases. Another purpose draws others, so that one commit covers more methods."""

    def place(case: Any) -> bytes:
        return hashlib.sha256(f"{seed()}/{purpose}/{case}".encode()).digest()

    return sorted(cases, key=place)[:how_many]


def in_turn(cases: Sequence[Any], how_many: int, purpose: str) -> list[Any]:
    """All cases as parameters of a test; those that are not chosen are marked slow."""
    fast = chosen(cases, how_many, purpose)
    return [
        pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=() if case in fast else pytest.mark.slow)
        for case in cases
    ]
