"""Finds logs whose files were lost or mixed up, so that no figure shows a round twice or in part.

`fibec-ray verify` looks closer: it compares digests.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from fibec_ray.analysis.log import RunLog
from fibec_ray.errors import RunDirError
from fibec_ray.roundlog.parts import is_part, round_of

KEYS = {"rounds": ["round"], "devices": ["round", "device"], "layers": ["round", "layer"]}
KEYS["evaluations"] = KEYS["devices"]


def refuse_damage(log: RunLog, frames: Mapping[str, pl.DataFrame]) -> None:
    """Raise RunDirError for rows that are there twice, and for a table that lacks a round which others have.

    frames: tables by name, as the log has them. Rounds that no table has are only left out of figures.
    """
    for name, frame in frames.items():
        _refuse_missing_parts(log, name)
        double = frame.filter(frame.select(KEYS[name]).is_duplicated())
        if len(double):
            raise RunDirError(
                f"{(log.place / name).shown}: has rows of round {double['round'][0]} twice, so its files are mixed up; "
                "put the right ones back"
            )
    found = set(frames["rounds"]["round"])
    if wrong := found ^ {round_of(Path(part)) for part in log.parts}:
        raise RunDirError(
            f"{(log.place / 'rounds').shown}: the file of round {min(wrong)} holds another; put the right one back"
        )


def _refuse_missing_parts(log: RunLog, name: str) -> None:
    """Older programs wrote fewer tables, so a table may begin late. From then on each round in `rounds` has a part."""
    folder = log.place / name
    there = {round_of(Path(part)) for part in folder.files() if is_part(part)}
    wanted = {round_of(Path(part)) for part in log.parts}
    missing = [round_ for round_ in wanted - there if there and round_ > min(there)]
    if missing:
        raise RunDirError(f"{folder.shown}: the part of round {min(missing)} is missing; put the file back")
