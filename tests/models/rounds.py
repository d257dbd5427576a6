"""Whole experiments in this process or in a fork of it, for test_backends_end_to_end.py.

DeepSpeed's process group and variables belong to its process, and end with it.
"""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fibec_ray.config.load import check
from fibec_ray.runs.simulation import simulate


def ran(folder: Path, settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Digest and backend of each run, by its name."""
    found = {}
    for name, of_run in settings.items():
        run = simulate(check(of_run, name), folder / name)
        summary = json.loads((run.folder / "summary.json").read_text())
        found[name] = {"digest": run.adapter_digest, "backend": summary["backend"]}
    return found


def report(folder: Path, settings: dict[str, dict[str, Any]], out: Connection) -> None:
    """Sends what `ran` gives, and the lines of this process's memory map that came into shared memory meanwhile."""
    before = _shared_memory()
    runs = ran(folder, settings)
    out.send({"runs": runs, "shared_memory": sorted(_shared_memory() - before)})


def _shared_memory() -> set[str]:
    return {line for line in Path("/proc/self/maps").read_text().splitlines() if "/dev/shm/" in line}
