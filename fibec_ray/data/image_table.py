"""Reads a column of images from a table.

The column has what `datasets` stores for an image, {bytes, path}, or the bytes alone, or paths relative to the table's
folder, as in a CSV.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fibec_ray.data.columns import complete_rows, plain, pylist
from fibec_ray.data.guess import normalised
from fibec_ray.data.pixels import SUFFIXES, Source
from fibec_ray.errors import DataError

NAMES = ("image", "img", "picture", "photo", "file_name", "filename", "image_path", "path", "file", "filepath")
"""Normalised names of image columns, the surest first."""
OTHER = "name another column with data.image"


def sources_of(column: Any, folder: Path | None, where: str) -> list[Source]:
    """The N images of a column. folder: what paths are relative to; None: there are no paths.

    Raises DataError for rows without an image and for columns of another type.
    """
    column = plain(column)
    if not len(column):
        raise DataError(f"{where}: no rows; give a split with at least one")
    values = _content(column, where)
    if missing := [row for row, value in enumerate(values) if not value]:
        raise DataError(
            f"{where}: no image in row {missing[0]}; add it, set data.drop_missing=true to leave such rows out, or "
            f"{OTHER}"
        )
    return [_source(value, folder, f"{where}, row {row}") for row, value in enumerate(values)]


def complete_images(table: Any, images: str, label: str, where: str) -> NDArray[np.int64]:
    """Rows with an image and a label. Raises DataError if there are none."""
    labelled = complete_rows(table, (label,), where)
    there = np.array([bool(value) for value in _content(plain(table[images]), where)], dtype=bool)
    rows = labelled[there[labelled]]
    if not len(rows):
        raise DataError(f"{where}: no row has both an image in '{images}' and a label in '{label}'")
    return rows


def folder_of(file: str) -> Path:
    """What the paths in a table are relative to: the table's folder."""
    return Path(file).parent


def image_column(table: Any, there: Sequence[str]) -> str | None:
    """The column of images by its type, or by its name; None if there is none or several."""
    typed = [name for name in there if _holds_images(table[name])]
    if len(typed) == 1:
        return typed[0]
    named = {normalised(name): name for name in reversed(typed or there)}
    return next((named[name] for name in NAMES if name in named), None)


def _holds_images(column: Any) -> bool:
    kind = plain(column).type
    if pa.types.is_struct(kind):
        return {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return True
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)) or not len(column):
        return False
    return all(str(value).lower().endswith(SUFFIXES) for value in column.slice(0, 10).to_pylist())


def _content(column: Any, where: str) -> list[bytes | str | None]:
    """The bytes or paths; of {bytes, path} the bytes where there are any."""
    kind = column.type
    if pa.types.is_struct(kind):
        names = {kind.field(i).name for i in range(kind.num_fields)}
        if not names & {"bytes", "path"}:
            raise DataError(f"{where}: structs of {', '.join(sorted(names))}, not of bytes and path; {OTHER}")
        return [(value or {}).get("bytes") or (value or {}).get("path") for value in pylist(column, where)]
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if text or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_null(kind):
        return pylist(column, where)
    raise DataError(f"{where}: the values are of type {kind}; allowed: images (bytes and path), bytes, paths; {OTHER}")


def _source(value: bytes | str | None, folder: Path | None, where: str) -> Source:
    if isinstance(value, bytes):
        return value
    path = Path(str(value)).expanduser()
    if folder is None and not path.is_absolute():
        raise DataError(f"{where}: the path {path} of an image, but no image; save the data set with embedded images")
    found = path if folder is None else folder / path
    if not found.is_file():
        raise DataError(
            f"{where}: no file {found}; paths are relative to the table's folder; correct the path, or {OTHER}"
        )
    return found
