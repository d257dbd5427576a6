"""Reads the round log of a run, finished or not; used by the analysis, by tests and by `fibec-ray` to compare runs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fibec_ray.errors import RunDirError
from fibec_ray.roundlog.schema import NONDETERMINISTIC, SCHEMA_VERSION, TABLES

_ORDER = {
    "rounds": ["round"],
    "devices": ["round", "device"],
    "layers": ["round", "layer"],
    "batches": ["round", "device", "batch"],
    "evaluations": ["round", "device"],
}


def read_rounds(run_dir: Path) -> pa.Table:
    """One row per round, in round order; columns as in `schema.ROUNDS`."""
    return _read(run_dir, "rounds")


def read_devices(run_dir: Path) -> pa.Table:
    """One row per device-round, in order of round and device; columns as in `schema.DEVICES`."""
    return _read(run_dir, "devices")


def read_layers(run_dir: Path) -> pa.Table:
    """One row per round and layer, in that order; columns as in `schema.LAYERS`. May have no rows."""
    return _read(run_dir, "layers")


def read_batches(run_dir: Path) -> pa.Table:
    """One row per scored batch, in order of round, device and batch; columns as in `schema.BATCHES`. May be empty."""
    return _read(run_dir, "batches")


def read_evaluations(run_dir: Path) -> pa.Table:
    """One row per device and evaluated round, in that order; columns as in `schema.EVALUATIONS`. May be empty."""
    return _read(run_dir, "evaluations")


def log_digest(run_dir: Path) -> str:
    """A hash of all that a run logged, NONDETERMINISTIC columns aside: equal digests mean bitwise-equal logs."""
    state = hashlib.blake2b(digest_size=16)
    for name in TABLES:
        table = _read(run_dir, name)
        for column in table.column_names:
            if column not in NONDETERMINISTIC:
                state.update(f"{name}.{column} {table.schema.field(column).type}\n".encode())
                state.update(repr(table.column(column).to_pylist()).encode())  # the repr of a float is exact
    return state.hexdigest()


def _read(run_dir: Path, name: str) -> pa.Table:
    folder = run_dir / name
    parts = sorted(folder.glob("[!.]*.parquet"))
    if not parts:
        raise RunDirError(
            f"{folder}: no round log here; is '{run_dir}' a run directory, and has its first round ended?"
        )
    table = pa.concat_tables([_read_part(path, TABLES[name]) for path in parts])
    return table.sort_by([(column, "ascending") for column in _ORDER[name]])


def _read_part(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        with pq.ParquetFile(path) as file:  # not read_table: it would take folders named 'key=value' for columns
            table = file.read()
    except (pa.ArrowException, OSError, EOFError) as error:
        raise RunDirError(f"{path}: not a readable part of a round log ({error}); remove it or rerun") from error
    _check_version(path, table.schema)
    if not table.schema.equals(schema):
        raise RunDirError(f"{path}: its columns are not those of a round log of version {SCHEMA_VERSION}")
    return table


def _check_version(path: Path, schema: pa.Schema) -> None:
    found = (schema.metadata or {}).get(b"schema_version", b"none").decode()
    if found != str(SCHEMA_VERSION):
        raise RunDirError(
            f"{path}: schema version {found}, but this program reads version {SCHEMA_VERSION}; "
            "read it with the program that wrote it"
        )
