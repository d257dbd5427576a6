"""Names of the log's files: one part for each table and round. Other files in those folders are ignored."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fibec_ray.errors import RunDirError
from fibec_ray.types import OPENING_ROUND

_PART = re.compile(r"init\.parquet|part-([0-9]{6}|[1-9][0-9]{6,})\.parquet")


def part_name(round_: int) -> str:
    """File name of a round's part; names sort in round order ('init' comes before 'part')."""
    return "init.parquet" if round_ == OPENING_ROUND else f"part-{round_:06d}.parquet"


def is_part(name: str) -> bool:
    """False for 'part-000000 (copy).parquet', '._part-000000.parquet' and the like."""
    return _PART.fullmatch(name) is not None


def parts(table: Path) -> list[Path]:
    """The part files in a table's folder, in round order; empty if the folder is missing. Raises RunDirError."""
    try:
        return sorted((path for path in table.iterdir() if is_part(path.name)), key=round_of)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RunDirError(f"{table}: cannot be read ({error.strerror})") from error


def metadata_of(part: str | Path, shown: str, filesystem: Any = None) -> dict[str, str]:
    """What a part says of its run. shown: its path, for messages. filesystem: pyarrow's; None: of this machine."""
    try:
        found = pq.read_schema(part, filesystem=filesystem).metadata or {}
        return {key.decode(): value.decode() for key, value in found.items()}
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise RunDirError(f"{shown}: not a readable part of a round log ({error})") from error


def round_of(part: Path) -> int:
    """The round whose rows a part file holds."""
    return OPENING_ROUND if part.stem == "init" else int(part.stem.removeprefix("part-"))
