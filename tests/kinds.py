"""A tiny experiment for every kind of task. The suites in tests/tasks and tests/fleets go through all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conftest import make_digits, make_instructions, make_pde, make_regression, make_shapes, make_tiny

Make = Callable[..., dict[str, Any]]
"""make("fibecfed", rounds=2): plain values of an experiment"""

KINDS: dict[str, Make] = {
    "synthetic": make_tiny,
    "exercises": make_instructions,
    "digits": make_digits,
    "regression": make_regression,
    "pde": make_pde,
    "shapes": make_shapes,
}
"""Kind -> a small experiment on rows that it generates."""
READ_FROM_TABLES = {"text": "synthetic", "instructions": "exercises", "images": "shapes"}
"""Kinds that differ from another one only in where rows come from."""
