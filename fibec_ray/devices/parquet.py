"""Reads columns of a user's Parquet file about devices. Every mistake raises one ConfigError with the remedy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from fibec_ray.errors import ConfigError, did_you_mean


class Wanted(NamedTuple):
    """A column: numbers, unless it is `text`."""

    name: str
    least: float = -math.inf
    """the smallest value allowed"""
    above: float = -math.inf
    """values must be larger than this"""
    whole: bool = False
    text: bool = False
    optional: bool = False


def read_columns(path: str, key: str, wanted: Sequence[Wanted]) -> dict[str, list[Any]]:
    """The wanted columns as lists of int, float or str; optional ones may be missing. key: below `system`."""
    where = f"system.{key}: {path}"
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigError(f"{where}: {'is not a file' if file.exists() else 'no such file'}; give a Parquet file")
    try:
        with pq.ParquetFile(file) as parquet:
            names = list(parquet.schema_arrow.names)
            chosen = [each for each in wanted if _is_there(each, names, where)]
            table = parquet.read(columns=[each.name for each in chosen])
    except (pa.ArrowException, OSError) as error:
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{where}: cannot be read as Parquet ({why}); write it again") from error
    if not table.num_rows:
        raise ConfigError(f"{where}: it has no rows; write one for each device")
    return {each.name: _values(table.column(each.name), each, where) for each in chosen}


def _is_there(each: Wanted, names: Sequence[str], where: str) -> bool:
    if names.count(each.name) > 1:
        raise ConfigError(f"{where}: column '{each.name}' is there twice; rename one")
    if each.name not in names and not each.optional:
        raise ConfigError(f"{where}: no column '{each.name}'; {did_you_mean(each.name, names, 'rename it')}")
    return each.name in names


def _values(column: Any, each: Wanted, where: str) -> list[Any]:
    place = f"{where}: column '{each.name}'"
    kind = column.type
    fits = pa.types.is_string(kind) or pa.types.is_large_string(kind) if each.text else _is_number(kind, each.whole)
    if not fits:
        expected = "text" if each.text else "whole numbers" if each.whole else "numbers"
        raise ConfigError(f"{place} has values of type {kind}; make them {expected}")
    values = column.to_pylist()
    for row, value in enumerate(values):
        if value is None or value == "":
            raise ConfigError(f"{place}, row {row}: is empty; give a value")
        if not each.text and not (math.isfinite(value) and value >= each.least and value > each.above):
            bound = f"above {each.above:g}" if math.isfinite(each.above) else f"{max(each.least, 0):g} or more"
            raise ConfigError(f"{place}, row {row}: found {value}; give a finite number, {bound}")
    return [value if each.text else int(value) if each.whole else float(value) for value in values]


def _is_number(kind: Any, whole: bool) -> bool:
    return bool(pa.types.is_integer(kind) or (not whole and pa.types.is_floating(kind)))


def refuse_unknown(path: str, key: str, devices: Iterable[int], num_devices: int) -> None:
    """Raise ConfigError if the file has devices that the federation lacks."""
    beyond = sorted(device for device in devices if not 0 <= device < num_devices)
    if beyond:
        raise ConfigError(
            f"system.{key}: {path}: it has device {beyond[0]}, but the federation has devices 0 to {num_devices - 1}; "
            f"remove its rows, or set num_devices={max(beyond[-1], 0) + 1}"
        )
