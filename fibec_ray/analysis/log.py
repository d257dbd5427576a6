"""Opens the round logs of runs, local or behind a URL, as lazy polars frames.

    from fibec_ray.analysis.log import open_run
    open_run("runs/mine").devices.group_by("device").agg(pl.col("bytes_up").sum()).collect()

Columns, units and meanings are in docs/round-log.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds

from fibec_ray.analysis.files import parsed
from fibec_ray.analysis.places import Place, place
from fibec_ray.errors import RunDirError
from fibec_ray.roundlog.parts import is_part, metadata_of
from fibec_ray.roundlog.schema import TABLES
from fibec_ray.roundlog.versions import RENAMED, SCHEMA_MAJOR, SCHEMA_OLDEST, SCHEMA_VERSION

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class RunLog:
    """One run's log, finished or not: the rounds that were in it when it was opened.

    A log of an older version has nulls in columns that came later, and no rows in tables that came later.
    """

    place: Place
    parts: tuple[str, ...]
    """file names, in round order: the same in every table"""
    metadata: Mapping[str, str]
    """of the last part: run_id, seed, git_commit, config, schema_version ..."""
    has_old_names: bool = False
    """True if the log began in a version whose columns had other names"""

    @property
    def rounds(self) -> pl.LazyFrame:
        """One row per round."""
        return self.table("rounds")

    @property
    def devices(self) -> pl.LazyFrame:
        """One row per device-round that was finished."""
        return self.table("devices")

    @property
    def layers(self) -> pl.LazyFrame:
        """One row per layer and round."""
        return self.table("layers")

    @property
    def batches(self) -> pl.LazyFrame:
        """One row per batch that a curriculum scored."""
        return self.table("batches")

    @property
    def evaluations(self) -> pl.LazyFrame:
        """One row per device, in each round that was evaluated."""
        return self.table("evaluations")

    def table(self, name: str) -> pl.LazyFrame:
        """A table by its name; only the columns and rows that a query asks for are read. Rows are in round order."""
        folder, schema = self.place / name, TABLES[name].remove_metadata()
        there = set(folder.files())  # a table that a program of another version did not write is empty
        paths = [f"{folder.path}/{part}" for part in self.parts if part in there]
        if not paths:
            return _polars(schema.empty_table()).lazy()
        old = {was: now for was, now in RENAMED.items() if self.has_old_names and now in schema.names}
        for was, now in old.items():
            schema = schema.append(schema.field(now).with_name(was))
        frame = _scan_here(paths, schema) if folder.is_local else _scan_there(paths, schema, folder)
        return frame.with_columns(pl.coalesce(now, was).alias(now) for was, now in old.items()).drop(old)

    def frame(self, name: str, *columns: str) -> pl.DataFrame:
        """Some columns of a table, or all. Raises RunDirError where a part cannot be read."""
        try:
            return (self.table(name).select(columns) if columns else self.table(name)).collect()
        except (pl.exceptions.PolarsError, pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise RunDirError(f"{(self.place / name).shown}: not a readable round log ({reason})") from error

    def pandas(self, name: str) -> pd.DataFrame:
        """A whole table for those who prefer pandas."""
        return self.frame(name).to_pandas()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved experiment: RUN/config.yaml, or else the log's own copy; empty where neither is there."""
        text = self.place.read_text("config.yaml")
        return parsed(f"{self.place.shown}/config.yaml", text or self.metadata.get("config", ""))

    @cached_property
    def summary(self) -> dict[str, Any]:
        """RUN/summary.json; empty where there is none."""
        return parsed(f"{self.place.shown}/summary.json", self.place.read_text("summary.json") or "")

    def fact(self, key: str) -> Any:
        """A plain value from the summary, or else the config, or else the log's metadata; None where none has it."""
        sources = (self.summary, self.config, self.metadata)
        return next((source[key] for source in sources if isinstance(source.get(key), str | int | float)), None)

    def anchors(self) -> dict[str, float]:
        """What predictors that learn nothing score, by name."""
        return self.numbers("anchors")

    def numbers(self, key: str) -> dict[str, float]:
        """A mapping of the summary without its nulls. Raises RunDirError if it holds anything but numbers."""
        found = self.summary.get(key) or {}
        try:
            return {str(name): float(value) for name, value in found.items() if value is not None}
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise RunDirError(f"{self.place.shown}/summary.json: {key}: expected names with numbers") from error

    @property
    def seed(self) -> int:
        """Raises RunDirError if it is not a whole number."""
        found = self.fact("seed")
        try:
            return int(found or 0)
        except (ValueError, OverflowError) as error:
            raise RunDirError(f"{self.place.shown}: its seed is {str(found)[:50]!r}, not a whole number") from error


def _scan_here(paths: list[str], schema: pa.Schema) -> pl.LazyFrame:
    """Unknown columns are left out, missing ones null; a folder named 'key=value' is no column."""
    return pl.scan_parquet(
        paths,
        schema=_polars(schema.empty_table()).schema,
        missing_columns="insert",
        extra_columns="ignore",
        hive_partitioning=False,
        glob=False,
    )


def _scan_there(paths: list[str], schema: pa.Schema, folder: Place) -> pl.LazyFrame:
    """The same for files behind a URL; five times as slow, and for every file system."""
    files = ds.FileSystemDataset.from_paths(
        paths, schema=schema, format=ds.ParquetFileFormat(), filesystem=folder.filesystem
    )
    return pl.scan_pyarrow_dataset(files)


def _polars(table: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(table)
    assert isinstance(frame, pl.DataFrame)
    return frame


def open_run(where: str | Path) -> RunLog:
    """The log in a run directory. Raises RunDirError if there is none, or if its version is not for this program."""
    root = place(where)
    folder = root / "rounds"
    parts = [name for name in folder.files() if is_part(name)]
    if not parts:
        raise RunDirError(
            f"{folder.shown}: no round log here; is '{root.shown}' a run directory, and has its first round ended?"
        )
    first, last = (
        metadata_of(f"{folder.path}/{part}", f"{folder.shown}/{part}", folder.filesystem)
        for part in (parts[0], parts[-1])
    )
    for metadata in (first, last):  # a run may have been resumed by a newer program
        _check_version(root.shown, metadata)
    began = first.get("schema_version", "")
    return RunLog(root, tuple(parts), last, began.isdecimal() and int(began) < SCHEMA_MAJOR)


def _check_version(shown: str, metadata: Mapping[str, str]) -> None:
    version = metadata.get("schema_version", "none")
    older = version.isdecimal() and SCHEMA_OLDEST <= int(version) < SCHEMA_MAJOR
    major = metadata.get("schema_major", version)
    if not older and major != str(SCHEMA_MAJOR):
        raise RunDirError(
            f"{shown}: a round log of schema version {version} (major {major}); this program reads versions of major "
            f"{SCHEMA_MAJOR} and versions {SCHEMA_OLDEST} to {SCHEMA_VERSION}; use a newer release"
        )
