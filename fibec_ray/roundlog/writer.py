"""Writes the round log, one part file per table and round; the simulation holds the only writer."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fibec_ray.errors import RunDirError, RunError, did_you_mean
from fibec_ray.reports import DeviceReport
from fibec_ray.roundlog.parts import part_name, parts, round_of
from fibec_ray.roundlog.schema import METADATA_KEYS, SCHEMA_MAJOR, SCHEMA_VERSION, TABLES, tables_of
from fibec_ray.run_dir import flush
from fibec_ray.types import OPENING_ROUND

Row = Mapping[str, Any]

PREVIOUS = "previous"
"""Key of a part's metadata: digest of the same table's part of the round before."""
_VERSION = {"schema_version": str(SCHEMA_VERSION), "schema_major": str(SCHEMA_MAJOR)}
_TUPLES = ("kept_neurons", "layer_fisher", "batches")  # fields of DeviceReport that are rows of other tables
_NOT_COLUMNS = (*_TUPLES, "state_digest")
_SCALARS = tuple(field.name for field in fields(DeviceReport) if field.name not in _NOT_COLUMNS)


class RoundLog:
    """The log of one run: `append` once per round, in order, starting with the initialisation phase if there is one.

    A round is in the log when its part of `rounds` is there: that one is written last and taken away first.
    """

    def __init__(self, run_dir: Path, metadata: Mapping[str, str], newest: Mapping[str, str] = MappingProxyType({})):
        """metadata: run_id, seed, git_commit and config (the resolved experiment), all as strings; more is kept too.

        newest: as the property of that name was when the run stopped, for a run that is resumed.
        """
        missing = [key for key in METADATA_KEYS if key not in metadata]
        if missing:
            raise RunError(f"round log: metadata lacks {', '.join(missing)}")
        self._metadata = _VERSION | dict(metadata)
        self._run_dir = run_dir
        self._newest = dict(newest)
        for table in TABLES:
            _make_folder(run_dir / table)

    def append(
        self,
        rounds_row: Row,
        device_rows: Sequence[DeviceReport],
        layer_rows: Sequence[Row],
        evaluation_rows: Sequence[Row] = (),
    ) -> None:
        """Adds a round, or writes it again. All of its rows are checked before the first part is written."""
        round_ = rounds_row.get("round", OPENING_ROUND)
        rounds = self._table("rounds", round_, [rounds_row])
        devices = self._table("devices", round_, [device_row(report) for report in device_rows])
        layers = self._table("layers", round_, layer_rows)
        batches = self._table("batches", round_, [row for report in device_rows for row in _batch_rows(report)])
        tables = {"evaluations": self._table("evaluations", round_, evaluation_rows), "batches": batches}
        for name, table in (tables | {"layers": layers, "devices": devices, "rounds": rounds}).items():
            before = {PREVIOUS: self._newest[name]} if name in self._newest else {}
            linked = table.replace_schema_metadata(self._metadata | before)
            self._newest[name] = _write(self._run_dir / name / part_name(round_), linked)

    @property
    def newest(self) -> Mapping[str, str]:
        """Digest of the newest part of each table. Each part names the one before it, so these vouch for all parts."""
        return dict(self._newest)

    def check(self, last: int, newest: Mapping[str, str]) -> None:
        """Raise RunDirError unless every part of the rounds -1 to `last` is what this run wrote.

        newest: digests of the parts of round `last`, which a checkpoint keeps. Checkpoints of older programs have none;
        then each part must be readable and of this run.
        """
        expected = {name: [newest[name]] if name in newest else [] for name in TABLES}
        for round_ in range(last, OPENING_ROUND - 1, -1):
            version = self._check_part("rounds", round_, expected["rounds"]).get("schema_version", "")
            if not version.isdecimal():
                where = self._run_dir / "rounds" / part_name(round_)
                raise RunDirError(f"{where}: not a readable part of a round log (schema version {version!r})")
            for name in tables_of(int(version)):
                if name != "rounds":
                    self._check_part(name, round_, expected[name])

    def rewind(self, first: int) -> None:
        """Forgets round `first` and all later ones: those that a run resumed from a checkpoint does again."""
        for name in TABLES:
            for path in parts(self._run_dir / name):
                if round_of(path) >= first:
                    _remove(path)

    def _check_part(self, name: str, round_: int, expected: list[str]) -> dict[str, str]:
        """The metadata of a part of this run. expected: its digest, if known; on return that of the part before it."""
        path = self._run_dir / name / part_name(round_)
        found = _metadata_of(path)
        if expected and _digest_of(path) != expected[0]:
            raise RunDirError(f"{path}: is damaged, or not the part that this run wrote: its digest differs")
        expected[:] = [found[PREVIOUS]] if PREVIOUS in found else []
        if found.get("run_id") != self._metadata["run_id"]:
            own = self._metadata["run_id"]
            raise RunDirError(f"{path}: is of another run ({found.get('run_id')}) than this one ({own})")
        return found

    def _table(self, name: str, round_: int, rows: Sequence[Row]) -> pa.Table:
        where = f"round log, {name}, round {round_}"
        schema = TABLES[name]
        for row in rows:
            _check_columns(where, schema, row)
            if row["round"] != round_:
                raise RunError(f"{where}: a row of round {row['round']} does not belong here")
        return pa.Table.from_pylist([dict(row) for row in rows], schema=schema.with_metadata(self._metadata))


def _metadata_of(part: Path) -> dict[str, str]:
    try:
        return {key.decode(): value.decode() for key, value in (pq.read_schema(part).metadata or {}).items()}
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise RunDirError(f"{part}: not a readable part of a round log ({error})") from error


def device_row(report: DeviceReport) -> dict[str, Any]:
    """Its row of `devices`."""
    return {name: getattr(report, name) for name in _SCALARS}


def _batch_rows(report: DeviceReport) -> list[dict[str, Any]]:
    where = {"round": report.round, "device": report.device}
    return [where | asdict(score) for score in report.batches or ()]


def _check_columns(where: str, schema: pa.Schema, row: Row) -> None:
    unknown = [name for name in row if name not in schema.names]
    if unknown:
        raise RunError(f"{where}: no column '{unknown[0]}'; {did_you_mean(unknown[0], schema.names)}")
    missing = [name for name in schema.names if name not in row]
    if missing:
        raise RunError(f"{where}: no value for {', '.join(missing)}; give None where there is none")
    for column in schema:
        if not _fits(column, row[column.name]):
            kind = f"{column.type}{' or None' if column.nullable else ''}"
            raise RunError(f"{where}: {column.name} = {row[column.name]!r} is not of type {kind}")


def _fits(column: pa.Field, value: Any) -> bool:
    """Whether a value can be stored as it is; pyarrow itself would cut 1.5 to an integer and let None pass."""
    if value is None:
        return bool(column.nullable)
    if isinstance(value, bool) or column.type == pa.bool_():
        return isinstance(value, bool) and column.type == pa.bool_()
    try:
        return bool(pa.scalar(value, column.type).as_py() == value or math.isnan(value))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunDirError(f"{folder}: cannot make this folder: {error.strerror}") from error


def _remove(part: Path) -> None:
    try:
        part.unlink()
    except OSError as error:
        raise RunDirError(f"{part}: cannot remove this part of the round log: {error.strerror}") from error


def _digest_of(part: Path) -> str:
    try:
        return digest_of_bytes(part.read_bytes())
    except OSError as error:
        raise RunDirError(f"{part}: cannot be read ({error.strerror})") from error


def digest_of_bytes(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _write(path: Path, table: pa.Table) -> str:
    """Write one part and return its digest. Readers look for *.parquet, so they see all of it or none."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    content = buffer.getvalue().to_pybytes()
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with open(unfinished, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
        flush(path.parent)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise RunDirError(f"{path}: cannot write the round log: {error.strerror}") from error
    return digest_of_bytes(content)
