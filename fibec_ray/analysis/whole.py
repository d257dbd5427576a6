"""Detect logs with lost or mixed-up files, so that no figure shows a round twice or in part.

`fibec-ray verify` looks closer: it compares digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from fibec_ray.analysis.log import RunLog
from fibec_ray.errors import RunDirError, round_name
from fibec_ray.roundlog.parts import is_part, part_name, round_of

KEYS = {"rounds": ["round"], "devices": ["round", "device"], "layers": ["round", "layer"]}
KEYS["evaluations"] = KEYS["devices"]


def refuse_damage(log: RunLog, frames: Mapping[str, pl.DataFrame]) -> None:
    """Raise RunDirError for duplicate rows, and for a table without a round that other tables have.

    frames: tables by name, as the log has them. Rounds that no table has are only left out of figures.
    """
    for name, frame in frames.items():
        _refuse_missing_parts(log, name)
        double = frame.filter(frame.select(KEYS[name]).is_duplicated())
        if len(double):
            raise RunDirError(
                f"{(log.place / name).shown}: has rows of {round_name(double['round'][0])} twice, "
                "so its files are mixed up; put the right ones back"
            )
    found, named = set(frames["rounds"]["round"]), {round_of(Path(part)) for part in log.parts}
    beyond = {round_ for round_ in found if not named or round_ > max(named)}  # a part may hold earlier rounds
    if wrong := (named - found) | beyond:
        raise RunDirError(
            f"{(log.place / 'rounds').shown}/{part_name(min(wrong))}: is missing or holds another round; "
            "put the right file back"
        )


def _refuse_missing_parts(log: RunLog, name: str) -> None:
    """A table may begin late, because older programs wrote fewer tables. From there on it has the same parts."""
    folder = log.place / name
    there = {round_of(Path(part)) for part in folder.files() if is_part(part)}
    wanted = {round_of(Path(part)) for part in log.parts}
    missing = [round_ for round_ in wanted - there if there and round_ > min(there)]
    if missing:
        raise RunDirError(f"{folder.shown}/{part_name(min(missing))}: is missing; put the file back")
