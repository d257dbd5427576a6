"""Writes columns as a Parquet file, which keeps their types: JSON readers take a text such as 2026-01-01 for a date."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fibec_ray.errors import DataError


def write_table(path: Path, columns: Mapping[str, Sequence[str] | Sequence[int]]) -> None:
    """Write the columns, which have the same length, to a new file. Raises DataError if it cannot be written."""
    try:
        pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), path)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{path}: cannot be written ({error})") from error
