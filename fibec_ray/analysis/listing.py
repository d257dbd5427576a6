"""`fibec-ray runs`: list the runs below a folder with their progress and best score."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from fibec_ray.analysis.files import FINISHED
from fibec_ray.analysis.formats import NONE, escaped, fitted
from fibec_ray.analysis.log import RunLog, open_run
from fibec_ray.analysis.places import local_path
from fibec_ray.analysis.units import SECONDS, unit_for
from fibec_ray.errors import FibecError, RunDirError
from fibec_ray.roundlog.schema import TABLES
from fibec_ray.roundlog.scores import score_column

HEAD = ("run", "status", "method", "task", "seed", "rounds", "best", "of", "last written")
_NO_RUNS_IN = {*TABLES, "checkpoints", "data", "adapter", "report", ".git", ".venv"}


def listing(folder: Path, width: int | None = None) -> str:
    """Make a table with one line per run below the folder, sorted by path. Raises RunDirError if there is none.

    width: characters in a line of the terminal that shows it.
    """
    local_path(folder)  # raises unless it is a usable path
    found = [_line(run, folder) for run in run_dirs(folder)]
    if not found:
        raise RunDirError(f"{folder}: no run below this folder")
    return fitted([HEAD, *([escaped(cell) for cell in row] for row in found)], width, num_left=4)


def run_dirs(folder: Path) -> Iterator[Path]:
    """Find folders that have a round log, sorted by path."""
    for root, folders, _ in os.walk(folder):
        if "rounds" in folders:
            yield Path(root)
        folders[:] = sorted(name for name in folders if name not in _NO_RUNS_IN)


def _line(run_dir: Path, folder: Path) -> list[str]:
    name = run_dir.relative_to(folder).as_posix() if run_dir != folder else run_dir.name
    try:
        log = open_run(run_dir)
        return [name, *_cells(log, run_dir)]
    except FibecError as error:  # one broken run must not hide the others
        return [name, "no rounds yet" if "no round log" in str(error) else "unreadable", *[NONE] * (len(HEAD) - 2)]


def _cells(log: RunLog, run_dir: Path) -> list[str]:
    done, planned = 1 + max(log.frame("rounds", "round").get_column("round")), log.fact("rounds")
    best, model = _best(log)
    written = (run_dir / "rounds" / log.parts[-1]).stat().st_mtime
    return [
        _status(log, done),
        _text(log.fact("method")),
        _text(log.fact("task")),
        _text(log.fact("seed")),
        f"{done}/{planned}" if planned else str(done),
        best,
        model,
        _age(time.time() - written),
    ]


def _status(log: RunLog, done: int) -> str:
    """Status for the list. A killed run still has the status running, so that is shown as `running or stopped`."""
    status = log.summary.get("status", FINISHED if done == log.fact("rounds") else "running")
    return "running or stopped" if status == "running" else str(status)


def _best(log: RunLog) -> tuple[str, str]:
    """The best score and its model: personal where the log has it, else global."""
    column = score_column(log.fact("metric"))
    names = [f"personal_{column}", f"global_{column}"]
    best = log.frame("rounds", *names).select(pl.all().fill_nan(None).max()).row(0)
    for model, value in zip(("personal", "global"), best, strict=True):
        if value is not None:
            return f"{value:.4f}", model
    return NONE, NONE


def _text(value: Any) -> str:
    return NONE if value is None else str(value)


def _age(seconds: float) -> str:
    unit = unit_for(seconds, SECONDS)
    return f"{max(0.0, seconds) / unit.size:.0f} {unit.name} ago"
