"""A tiny experiment for every kind of task. The suites in tests/tasks and tests/fleets go through all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from conftest import (
    make_digits,
    make_instructions,
    make_pde,
    make_preferences,
    make_regression,
    make_seq2seq,
    make_shapes,
    make_tagging,
    make_tiny,
    named,
)


def make_similar(method: str | dict[str, Any] = "fedavg", **changes: Any) -> dict[str, Any]:
    settings = make_tiny(method, **changes)
    data = {"max_length": 24, "similar": {"num_train": 72, "num_test": 24}}
    return settings | {"task": named("tasks", "similar"), "data": data}


def make_mentions(method: str | dict[str, Any] = "fedavg", **changes: Any) -> dict[str, Any]:
    settings = make_tiny(method, **changes)
    data = {"max_length": 24, "mentions": {"num_train": 72, "num_test": 24}}
    return settings | {"task": named("tasks", "mentions"), "data": data}


Make = Callable[..., dict[str, Any]]
"""make("fibecfed", rounds=2): plain values of an experiment"""

KINDS: dict[str, Make] = {
    "synthetic": make_tiny,
    "exercises": make_instructions,
    "preference_exercises": make_preferences,
    "digits": make_digits,
    "regression": make_regression,
    "pde": make_pde,
    "shapes": make_shapes,
    "similar_texts": make_similar,
    "mentions": make_mentions,
    "tagging": make_tagging,
}
"""Kind -> a small experiment on rows that it generates."""
READ_FROM_TABLES = {
    "text": "synthetic",
    "instructions": "exercises",
    "text_regression": "similar_texts",
    "multi_label": "mentions",
    "preferences": "preference_exercises",
    "images": "shapes",
    "token_labels": "tagging",
}
"""Kinds that differ from another one only in where rows come from."""
CASES: dict[str, Make] = {**KINDS, "exercises on T5": make_seq2seq}
"""All kinds, and backbones that need samples of another form."""
