"""Writes the round log: part files, each with a table's rows of one round or of a few. A run has one writer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from fibec_ray.errors import RunError, did_you_mean
from fibec_ray.files.run_dir import refused, whole
from fibec_ray.reports import DeviceReport
from fibec_ray.roundlog.parts import FIRST_ROUND, PREVIOUS, digest_of, part_name, parts, round_of
from fibec_ray.roundlog.schema import METADATA_KEYS, TABLES
from fibec_ray.roundlog.versions import SCHEMA_MAJOR, SCHEMA_VERSION
from fibec_ray.types import SETUP_ROUND

Row = Mapping[str, Any]

_VERSION = {"schema_version": str(SCHEMA_VERSION), "schema_major": str(SCHEMA_MAJOR)}
_PLAIN: dict[pa.DataType, type] = {pa.float64(): float, pa.int32(): int, pa.int64(): int, pa.bool_(): bool}
_TUPLES = ("kept_neurons", "layer_fisher", "batches")  # fields of DeviceReport that are rows of other tables
_NOT_COLUMNS = (*_TUPLES, "state_digest")
_SCALARS = tuple(field.name for field in fields(DeviceReport) if field.name not in _NOT_COLUMNS)


class _Column(NamedTuple):
    kind: pa.DataType
    nullable: bool
    plain: type | None
    """type of its values in Python; None: of other types, and strings"""
    least: int
    """of an integer"""

    def fits(self, value: Any) -> bool:
        """Whether a value can be stored as it is; pyarrow itself would cut 1.5 to an integer and let None pass."""
        if value is None:
            return self.nullable
        if type(value) is self.plain:  # most values; pyarrow takes twenty times as long
            return not isinstance(value, int) or self.plain is bool or self.least <= value < -self.least
        if isinstance(value, bool) or self.plain is bool:
            return False
        try:
            return bool(pa.scalar(value, self.kind).as_py() == value or math.isnan(value))
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            return False


def _columns(schema: pa.Schema) -> dict[str, _Column]:
    return {
        field.name: _Column(
            field.type,
            field.nullable,
            _PLAIN.get(field.type),
            -(2 ** (field.type.bit_width - 1)) if pa.types.is_integer(field.type) else 0,
        )
        for field in schema
    }


_COLUMNS = {name: _columns(schema) for name, schema in TABLES.items()}


class RoundLog:
    """The log of one run: `append` once per round, in order, starting with the initialisation phase if there is one.

    A round is in the log when its part of `rounds` is there: that one is written last and taken away first.
    """

    def __init__(
        self,
        run_dir: Path,
        metadata: Mapping[str, str],
        newest: Mapping[str, str] = MappingProxyType({}),
        rounds_per_part: int = 1,
    ):
        """metadata: run_id, seed, git_commit and config (the resolved experiment), all as strings; more is kept too.

        newest: as the attribute of that name was when the run stopped, for a run that is resumed. rounds_per_part:
        rounds to collect before they are written, for runs of many short rounds. Call `flush` to write them earlier.
        """
        missing = [key for key in METADATA_KEYS if key not in metadata]
        if missing:
            raise RunError(f"round log: metadata lacks {', '.join(missing)}")
        self._metadata = _VERSION | dict(metadata)
        self._run_dir = run_dir
        self.newest = dict(newest)
        """Digest of the newest part of each table. Each part names the one before it, so these vouch for all parts."""
        self._rounds_per_part = rounds_per_part
        self._collected: dict[int, dict[str, list[Row]]] = {}
        """rounds that are not written yet, by number: their rows, by table"""
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
        """Add a round, or write it again. Checks all of its rows before it keeps any."""
        round_ = rounds_row.get("round", SETUP_ROUND)
        scores = [(report.device, score) for report in device_rows for score in report.batches or ()]
        rows: dict[str, Sequence[Row]] = {
            "rounds": [rounds_row],
            "devices": [device_row(report) for report in device_rows],
            "layers": layer_rows,
            "batches": [{"round": round_, "device": device, **asdict(score)} for device, score in scores],
            "evaluations": evaluation_rows,
        }
        self._collected[round_] = {name: _checked(name, round_, found) for name, found in rows.items()}
        if round_ == SETUP_ROUND or len(self._collected) >= self._rounds_per_part:
            self.flush()

    def flush(self) -> None:
        """Write the rounds that are not written yet, as one part per table."""
        if not self._collected:
            return
        first, last = min(self._collected), max(self._collected)
        metadata = self._metadata | ({FIRST_ROUND: str(first)} if first < last else {})
        for name in reversed(TABLES):  # rounds last
            rows = list(chain.from_iterable(found[name] for found in self._collected.values()))
            before = {PREVIOUS: self.newest[name]} if name in self.newest else {}
            table = pa.Table.from_pylist(rows, schema=TABLES[name].with_metadata(metadata | before))
            self.newest[name] = _write(self._run_dir / name / part_name(last), table)
        self._collected.clear()

    def rewind(self, first: int) -> None:
        """Forgets round `first` and all later ones: those that a run resumed from a checkpoint does again."""
        for name in TABLES:
            later = [path for path in parts(self._run_dir / name) if round_of(path) >= first]
            drafts = (self._run_dir / name).glob(".*.parquet.*.part")  # of a driver that was killed while it wrote
            for path in (*later, *(draft for draft in drafts if not draft.is_symlink())):
                with refused(f"{path}: cannot remove this part of the round log"):
                    path.unlink()


def device_row(report: DeviceReport) -> dict[str, Any]:
    """Its row of `devices`."""
    return {name: getattr(report, name) for name in _SCALARS}


def _checked(name: str, round_: int, rows: Sequence[Row]) -> list[Row]:
    where = f"round log, {name}, round {round_}"
    for row in rows:
        _check_columns(where, name, row)
        if row["round"] != round_:
            raise RunError(f"{where}: a row of round {row['round']} does not belong here")
    return [dict(row) for row in rows]


def _check_columns(where: str, table: str, row: Row) -> None:
    columns = _COLUMNS[table]
    if row.keys() != columns.keys():
        unknown = [name for name in row if name not in columns]
        if unknown:
            raise RunError(f"{where}: no column '{unknown[0]}'; {did_you_mean(unknown[0], list(columns))}")
        missing = [name for name in columns if name not in row]
        raise RunError(f"{where}: no value for {', '.join(missing)}; give None where there is none")
    for name, column in columns.items():
        if not column.fits(row[name]):
            kind = f"{column.kind}{' or None' if column.nullable else ''}"
            raise RunError(f"{where}: {name} = {row[name]!r} is not of type {kind}")


def _write(path: Path, table: pa.Table) -> str:
    """Write one part and return its digest. Readers look for *.parquet, so they see all of it or none."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    content = buffer.getvalue().to_pybytes()
    with whole(path) as file:
        file.write(content)
    return digest_of(content)
