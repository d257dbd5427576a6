"""Compares rounds of two logs, value by value."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fibec_ray.roundlog.reader import read_table
from fibec_ray.roundlog.schema import KEYS, NONDETERMINISTIC, TABLES


def differences(logged: Path, again: Path, first: int, last: int) -> list[str]:
    """One line for each value that differs, of those that equal runs agree on; rounds first to last."""
    found = []
    for name in TABLES:
        rows, other = (_rows(folder, name, first, last) for folder in (logged, again))
        if len(rows) != len(other):
            found.append(f"{name}: {len(rows)} rows logged, {len(other)} now")
            continue
        found += [line for row, now in zip(rows, other, strict=True) for line in row_differences(name, row, now)]
    return found


def row_differences(table: str, logged: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """'devices, round 3, device 7: train_loss 0.25 logged, 0.5 now'"""
    keys = [f"{key} {logged[key]}" for key in KEYS if key in logged]
    return [
        f"{', '.join([table, *keys])}: {column} {value!r} logged, {now[column]!r} now"
        for column, value in logged.items()
        if column not in NONDETERMINISTIC and repr(value) != repr(now[column])  # the repr of a float is exact
    ]


def num_rows(run_dir: Path) -> dict[str, int]:
    """By table."""
    return {f"rows of {name}": read_table(run_dir, name).num_rows for name in TABLES}


def _rows(run_dir: Path, name: str, first: int, last: int) -> list[dict[str, Any]]:
    table: pa.Table = read_table(run_dir, name)
    rounds = table.column("round")
    wanted = table.filter(pc.and_(pc.greater_equal(rounds, first), pc.less_equal(rounds, last)))
    rows: list[dict[str, Any]] = wanted.to_pylist()
    return rows
