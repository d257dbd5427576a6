"""The table that `fibec-ray jobs` prints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime

from rich.table import Table

from fibec_ray.cli.terminal import make_console, print_table
from fibec_ray.cli.units import duration
from fibec_ray.jobs.client import Job


def job_table(jobs: Sequence[Job]) -> None:
    """One row per job, oldest first."""
    table = Table()
    for column in ("job", "status", "started", "took", "run directory"):
        table.add_column(column, overflow="fold")
    for job in jobs:
        started = datetime.fromtimestamp(job.start_s).strftime("%Y-%m-%d %H:%M:%S") if job.start_s else ""
        took = duration((job.end_s or time.time()) - job.start_s) if job.start_s else ""
        table.add_row(job.id, job.status.lower(), started, took, job.out or "")
    print_table(make_console(), table, fold_in_pipes=False)
