"""Checks that a round log is what its run wrote: each part names the digest of the part before it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from fibec_ray.errors import RunDirError
from fibec_ray.files.run_dir import refused
from fibec_ray.roundlog.parts import metadata_of, part_name
from fibec_ray.roundlog.schema import TABLES, tables_of
from fibec_ray.types import OPENING_ROUND

PREVIOUS = "previous"
"""Key of a part's metadata: digest of the same table's part of the round before."""


def check_parts(run_dir: Path, run_id: str, last: int, newest: Mapping[str, str]) -> None:
    """Raise RunDirError unless every part of the rounds -1 to `last` is what this run wrote.

    newest: digests of the parts of round `last`, which a checkpoint keeps. Checkpoints of older programs have none;
    then each part must be readable and of this run.
    """
    expected = {name: [newest[name]] if name in newest else [] for name in TABLES}
    for round_ in range(last, OPENING_ROUND - 1, -1):
        path = run_dir / "rounds" / part_name(round_)
        version = _check_part(path, run_id, expected["rounds"]).get("schema_version", "")
        if not version.isdecimal():
            raise RunDirError(f"{path}: not a readable part of a round log (schema version {version!r})")
        for name in tables_of(int(version)):
            if name != "rounds":
                _check_part(run_dir / name / part_name(round_), run_id, expected[name])


def digest_of(content: bytes) -> str:
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
        raise RunDirError(f"{path}: is of another run ({found.get('run_id')}) than this one ({run_id})")
    return found
