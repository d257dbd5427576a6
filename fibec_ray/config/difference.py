"""The first setting in which two experiments differ, in words."""

from __future__ import annotations

from typing import Any


def first_difference(found: Any, wanted: Any, at: str = "") -> str:
    """'local.learning_rate is 0.01 there, 0.003 here'"""
    if not isinstance(found, dict) or not isinstance(wanted, dict):
        return f"{at} is {found!r} there, {wanted!r} here"
    for key in {**wanted, **found}:
        if found.get(key) != wanted.get(key):
            return first_difference(found.get(key), wanted.get(key), f"{at}.{key}" if at else str(key))
    return "its settings are of other kinds"
