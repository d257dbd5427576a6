"""Writes the round log, one part file per table and round; the simulation holds the only writer."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fibec_ray.errors import RunDirError, RunError, did_you_mean
from fibec_ray.reports import DeviceReport
from fibec_ray.roundlog.schema import METADATA_KEYS, SCHEMA_MAJOR, SCHEMA_VERSION, TABLES, tables_of
from fibec_ray.types import OPENING_ROUND

Row = Mapping[str, Any]

_VERSION = {"schema_version": str(SCHEMA_VERSION), "schema_major": str(SCHEMA_MAJOR)}
_TUPLES = ("kept_neurons", "layer_fisher", "batches")  # fields of DeviceReport that are rows of other tables
_SCALARS = tuple(field.name for field in fields(DeviceReport) if field.name not in _TUPLES)


class RoundLog:
    """The log of one run: `append` once per round, in order, starting with the initialisation phase if there is one.

    A round is in the log when its part of `rounds` is there: that one is written last and taken away first.
    """

    def __init__(self, run_dir: Path, metadata: Mapping[str, str]):
        """metadata: run_id, seed, git_commit and config (the resolved experiment), all as strings; more is kept too."""
        missing = [key for key in METADATA_KEYS if key not in metadata]
        if missing:
            raise RunError(f"round log: metadata lacks {', '.join(missing)}")
        self._metadata = _VERSION | dict(metadata)
        self._run_dir = run_dir
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
        parts = {"evaluations": self._table("evaluations", round_, evaluation_rows), "batches": batches}
        for name, table in (parts | {"layers": layers, "devices": devices, "rounds": rounds}).items():
            _write(self._run_dir / name / part_name(round_), table)

    def check(self, last: int) -> None:
        """Raises RunDirError unless all tables have a readable part of this run for each round from -1 to `last`.

        Reads the ends of the files only, which is where a file that was cut short lacks something.
        """
        for round_ in range(OPENING_ROUND, last + 1):
            version = int(self._check_part("rounds", round_)["schema_version"])
            for name in tables_of(version):
                self._check_part(name, round_)

    def rewind(self, first: int) -> None:
        """Forgets round `first` and all later ones: those that a run resumed from a checkpoint does again."""
        for name in TABLES:
            for path in (self._run_dir / name).glob("*.parquet"):
                if round_of(path) >= first:
                    _remove(path)

    def _check_part(self, name: str, round_: int) -> dict[str, str]:
        """The metadata of a part of this run."""
        path = self._run_dir / name / part_name(round_)
        found = _metadata_of(path)
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


def part_name(round_: int) -> str:
    """File name of a round's part; names sort in round order ('init' comes before 'part')."""
    return "init.parquet" if round_ == OPENING_ROUND else f"part-{round_:06d}.parquet"


def round_of(part: Path) -> int:
    """The round whose rows a part file holds."""
    return OPENING_ROUND if part.stem == "init" else int(part.stem.removeprefix("part-"))


def _metadata_of(part: Path) -> dict[str, str]:
    try:
        return {key.decode(): value.decode() for key, value in (pq.read_schema(part).metadata or {}).items()}
    except (pa.ArrowException, OSError, EOFError) as error:
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


def _write(path: Path, table: pa.Table) -> None:
    """Readers see the whole part or none of it: they look for *.parquet, and the name is given last."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        with open(unfinished, "wb") as file:
            file.write(buffer.getvalue())
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise RunDirError(f"{path}: cannot write the round log: {error.strerror}") from error
