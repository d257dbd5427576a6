"""Runs that stop in the middle, for tests: the plug is pulled after so many device-rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fibec_ray.config.load import check
from fibec_ray.roundlog.reader import log_digest
from fibec_ray.runs.simulation import Finished
from fibec_ray.testing import checks


class Plug(checks.Plug):
    """Remembers what the run had to say, too."""

    def __init__(self, after: int | None = None):
        super().__init__(after)
        self.notes = list[str]()

    def on_message(self, text: str) -> None:
        self.notes.append(text)


def interrupted(settings: dict[str, Any], folder: Path, after: int) -> Path:
    """The folder of a run that failed after so many device-rounds."""
    return checks.stopped(check(settings, "test"), folder, after)


def result(run: Finished | None, folder: Path) -> tuple[str, str, int]:
    """What equal runs agree on."""
    assert run is not None
    return run.adapter_digest, log_digest(folder), len(run.rows)
