"""Reads the round log of a run, finished or not, and compares two logs value by value."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fibec_ray.errors import RunDirError, round_number
from fibec_ray.reports import DeviceReport
from fibec_ray.roundlog.parts import metadata_of, parts
from fibec_ray.roundlog.schema import KEYS, NONDETERMINISTIC, TABLES
from fibec_ray.roundlog.versions import ADDED, RENAMED, SCHEMA_MAJOR, SCHEMA_OLDEST, SCHEMA_VERSION, tables_of


def read_rounds(run_dir: Path) -> pa.Table:
    """One row per round, in round order; columns as in `schema.ROUNDS`."""
    return read_table(run_dir, "rounds")


def read_devices(run_dir: Path) -> pa.Table:
    """One row per device-round, in order of round and device; columns as in `schema.DEVICES`."""
    return read_table(run_dir, "devices")


def read_reports(run_dir: Path, before: int) -> list[list[DeviceReport]]:
    """The devices' reports in each round from 0 up to `before`, as far as the table devices has them."""
    names = [field.name for field in fields(DeviceReport) if field.name in TABLES["devices"].names]
    found: list[list[DeviceReport]] = [[] for _ in range(before)]
    for row in _rows(run_dir, "devices", 0, before - 1):
        found[row["round"]].append(DeviceReport(**{name: row[name] for name in names}))
    return found


def peak_gpu_gb(run_dir: Path) -> float | None:
    """The most GPU memory of any device-round, in 1e9 bytes; None for a run on CPUs, and in logs without it."""
    table, name = read_devices(run_dir), "peak_gpu_memory_bytes"
    known = [value for value in table.column(name).to_pylist() if value] if name in table.column_names else []
    return max(known) / 1e9 if known else None


def log_digest(run_dir: Path) -> str:
    """A hash of all that a run logged, NONDETERMINISTIC columns aside: equal digests mean bitwise-equal logs."""
    state = hashlib.blake2b(digest_size=16)
    for name in TABLES:
        table = read_table(run_dir, name)
        for column in table.column_names:
            if column not in NONDETERMINISTIC:
                state.update(f"{name}.{column} {table.schema.field(column).type}\n".encode())
                state.update(repr(table.column(column).to_pylist()).encode())  # the repr of a float is exact
    return state.hexdigest()


def read_table(run_dir: Path, name: str) -> pa.Table:
    """One of `schema.TABLES`, in order of its first columns. All but `rounds` and `devices` may have no rows."""
    folder = run_dir / name
    found = parts(folder)
    if not found and not _had(run_dir, name):
        return TABLES[name].empty_table()
    if not found:
        raise RunDirError(
            f"{folder}: no round log here; is '{run_dir}' a run directory, and has its first round ended?"
        )
    table = pa.concat_tables([_read_part(path, TABLES[name]) for path in found])
    return table.sort_by([(column, "ascending") for column in KEYS if column in table.column_names])


def _had(run_dir: Path, name: str) -> bool:
    """Whether the program that began the log wrote this table at all."""
    first = next(iter(parts(run_dir / "rounds")), None)
    return first is None or name in tables_of(
        _version(first, metadata_of(first, str(first)).get("schema_version", "none"))
    )


def _read_part(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:  # not read_table: it would take folders named 'key=value' for columns
            table = file.read()
    except (pa.ArrowException, OSError, EOFError) as error:
        raise RunDirError(f"{path}: not a readable part of a round log ({error}); remove it or rerun") from error
    version = _version(path, (table.schema.metadata or {}).get(b"schema_version", b"none").decode())
    for name in _added_after(version, path.parent.name):
        table = table.append_column(schema.field(name), pa.nulls(len(table), schema.field(name).type))
    if version < SCHEMA_MAJOR:
        table = table.rename_columns([RENAMED.get(name, name) for name in table.column_names])
    if not table.schema.equals(schema):
        raise RunDirError(f"{path}: its columns are not those of a round log of version {version}")
    return table


def _added_after(version: int, name: str) -> list[str]:
    """Columns of a table that versions after this one added, in the order of the schema."""
    later = (ADDED[added].get(name, ()) for added in sorted(ADDED) if added > version)
    return list(chain.from_iterable(later))


def unknown_columns(run_dir: Path, name: str) -> set[str]:
    """Columns of a table that some part of the log lacks, since an earlier release wrote it."""
    folder = run_dir / name
    written = {_version(path, metadata_of(path, str(path)).get("schema_version", "none")) for path in parts(folder)}
    return set(_added_after(min(written), name)) if written else set()


def _version(path: Path, found: str) -> int:
    if not found.isdecimal() or not SCHEMA_OLDEST <= int(found) <= SCHEMA_VERSION:
        raise RunDirError(
            f"{path}: schema version {found}, but this program reads versions {SCHEMA_OLDEST} to {SCHEMA_VERSION}; "
            "read it with the program that wrote it"
        )
    return int(found)


def differences(logged: Path, again: Path, first: int, last: int) -> list[str]:
    """One line for each value that differs, of those that equal runs agree on; rounds first to last.

    Columns that the logged run does not have, because an earlier release wrote it, are not compared.
    """
    found = []
    for name in TABLES:
        rows, other = (_rows(folder, name, first, last) for folder in (logged, again))
        if len(rows) != len(other):
            found.append(f"{name}: {len(rows)} rows logged, {len(other)} now")
            continue
        unknown = unknown_columns(logged, name)
        for row, now in zip(rows, other, strict=True):
            known = {column: value for column, value in row.items() if column not in unknown}
            found += row_differences(name, known, now)
    return found


def row_differences(table: str, logged: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line per column that differs, such as 'devices, round 3, device 7: train_loss 0.25 logged, 0.5 now'."""
    shown = {**logged, "round": round_number(logged["round"])}
    keys = [f"{key} {shown[key]}" for key in KEYS if key in logged]
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
    rounds = table.column("round").to_numpy()
    rows: list[dict[str, Any]] = table.filter(pa.array((rounds >= first) & (rounds <= last))).to_pylist()
    return rows
