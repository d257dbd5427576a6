"""Writes the round log, one part file per table and round. A run has one writer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fibec_ray.errors import RunError, did_you_mean
from fibec_ray.files.run_dir import refused, whole
from fibec_ray.reports import DeviceReport
from fibec_ray.roundlog.parts import PREVIOUS, digest_of, part_name, parts, round_of
from fibec_ray.roundlog.schema import METADATA_KEYS, SCHEMA_MAJOR, SCHEMA_VERSION, TABLES
from fibec_ray.types import SETUP_ROUND

Row = Mapping[str, Any]

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

        newest: as the attribute of that name was when the run stopped, for a run that is resumed.
        """
        missing = [key for key in METADATA_KEYS if key not in metadata]
        if missing:
            raise RunError(f"round log: metadata lacks {', '.join(missing)}")
        self._metadata = _VERSION | dict(metadata)
        self._run_dir = run_dir
        self.newest = dict(newest)
        """Digest of the newest part of each table. Each part names the one before it, so these vouch for all parts."""
        for table in TABLES:
            with refused(f"{run_dir / table}: cannot make this folder"):
                (run_dir / table).mkdir(parents=True, exist_ok=True)

    def append(
        self,
        rounds_row: Row,
        device_rows: Sequence[DeviceReport],
        layer_rows: Sequence[Row],
        evaluation_rows: Sequence[Row] = (),
    ) -> None:
        """Adds a round, or writes it again. All of its rows are checked before the first part is written."""
        round_ = rounds_row.get("round", SETUP_ROUND)
        rounds = self._table("rounds", round_, [rounds_row])
        devices = self._table("devices", round_, [device_row(report) for report in device_rows])
        layers = self._table("layers", round_, layer_rows)
        scores = [(report.device, score) for report in device_rows for score in report.batches or ()]
        batches = self._table("batches", round_, [{"round": round_, "device": d, **asdict(s)} for d, s in scores])
        tables = {"evaluations": self._table("evaluations", round_, evaluation_rows), "batches": batches}
        for name, table in (tables | {"layers": layers, "devices": devices, "rounds": rounds}).items():
            before = {PREVIOUS: self.newest[name]} if name in self.newest else {}
            linked = table.replace_schema_metadata(self._metadata | before)
            self.newest[name] = _write(self._run_dir / name / part_name(round_), linked)

    def rewind(self, first: int) -> None:
        """Forgets round `first` and all later ones: those that a run resumed from a checkpoint does again."""
        for name in TABLES:
            later = [path for path in parts(self._run_dir / name) if round_of(path) >= first]
            drafts = (self._run_dir / name).glob(".*.parquet.*.part")  # of a driver that was killed while it wrote
            for path in (*later, *(draft for draft in drafts if not draft.is_symlink())):
                with refused(f"{path}: cannot remove this part of the round log"):
                    path.unlink()

    def _table(self, name: str, round_: int, rows: Sequence[Row]) -> pa.Table:
        where = f"round log, {name}, round {round_}"
        schema = TABLES[name]
        for row in rows:
            _check_columns(where, schema, row)
            if row["round"] != round_:
                raise RunError(f"{where}: a row of round {row['round']} does not belong here")
        return pa.Table.from_pylist([dict(row) for row in rows], schema=schema.with_metadata(self._metadata))


def device_row(report: DeviceReport) -> dict[str, Any]:
    """Its row of `devices`."""
    return {name: getattr(report, name) for name in _SCALARS}


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


def _write(path: Path, table: pa.Table) -> str:
    """Write one part and return its digest. Readers look for *.parquet, so they see all of it or none."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    content = buffer.getvalue().to_pybytes()
    with whole(path) as file:
        file.write(content)
    return digest_of(content)
