"""The log's files: parts of a table, named after the last round that they hold.

Most runs have a part per round. Runs of many short rounds have several rounds in a part, in all tables alike. Each part
stores the digest of the part before it. Other files in those folders are ignored.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fibec_ray.errors import RunDirError
from fibec_ray.files.run_dir import refused
from fibec_ray.roundlog.schema import TABLES
from fibec_ray.roundlog.versions import tables_of
from fibec_ray.types import SETUP_ROUND

_PART = re.compile(r"init\.parquet|part-([0-9]{6}|[1-9][0-9]{6,})\.parquet")
PREVIOUS = "previous"
"""Key of a part's metadata: digest of the same table's part before it."""
FIRST_ROUND = "first_round"
"""Key of a part's metadata, in parts with several rounds: the first of them."""


def part_name(round_: int) -> str:
    """File name of the part that ends with a round. Names sort in round order ('init' comes before 'part')."""
    return "init.parquet" if round_ == SETUP_ROUND else f"part-{round_:06d}.parquet"


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
    """Read a part's metadata. shown: its path, for messages. filesystem: pyarrow's; None: of this machine."""
    try:
        found = pq.read_schema(part, filesystem=filesystem).metadata or {}
        return {key.decode(): value.decode() for key, value in found.items()}
    except (pa.ArrowException, OSError, EOFError, UnicodeDecodeError) as error:
        raise RunDirError(f"{shown}: not a readable part of a round log ({error})") from error


def round_of(part: Path) -> int:
    """The last round that a part file holds."""
    return SETUP_ROUND if part.stem == "init" else int(part.stem.removeprefix("part-"))


def check_parts(run_dir: Path, run_id: str, last: int, newest: Mapping[str, str]) -> None:
    """Raise RunDirError unless this run wrote every part of the rounds -1 to `last`.

    newest: digests of the parts of round `last`, which a checkpoint keeps. Checkpoints of older programs have none;
    then each part must be readable and of this run.
    """
    expected = {name: [newest[name]] if name in newest else [] for name in TABLES}
    round_ = last
    while round_ >= SETUP_ROUND:
        path = run_dir / "rounds" / part_name(round_)
        found = _check_part(path, run_id, expected["rounds"])
        version = found.get("schema_version", "")
        if not version.isdecimal():
            raise RunDirError(f"{path}: not a readable part of a round log (schema version {version!r})")
        for name in tables_of(int(version)):
            if name != "rounds":
                _check_part(run_dir / name / part_name(round_), run_id, expected[name])
        round_ = _first_round(path, found) - 1


def _first_round(path: Path, metadata: Mapping[str, str]) -> int:
    """The first round in a part."""
    last = round_of(path)
    found = metadata.get(FIRST_ROUND, str(last))
    if found == str(last):
        return last
    if not (found.isascii() and found.isdecimal()) or int(found) > last:
        raise RunDirError(f"{path}: not a readable part of a round log (first round {found!r})")
    return int(found)


def digest_of(content: bytes) -> str:
    """Hash of a file's contents."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _check_part(path: Path, run_id: str, expected: list[str]) -> dict[str, str]:
    """The metadata of a part of this run. expected: its digest, if known; on return that of the part before it."""
    found = metadata_of(path, str(path))
    with refused(f"{path}: cannot be read"):
        digest = digest_of(path.read_bytes()) if expected else ""
    if expected and digest != expected[0]:
        raise RunDirError(f"{path}: is damaged, or not the part that this run wrote: its digest differs")
    expected[:] = [found[PREVIOUS]] if PREVIOUS in found else []
    if found.get("run_id") != run_id:
        raise RunDirError(f"{path}: belongs to another run ({found.get('run_id')}, not {run_id})")
    return found
