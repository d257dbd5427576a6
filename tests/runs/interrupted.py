"""Runs that stop in the middle, for tests: the plug is pulled after so many device-rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fibec_ray.config.load import check
from fibec_ray.roundlog.reader import log_digest
from fibec_ray.runs.simulation import Nobody, Run, simulate


class Plug(Nobody):
    """Watches a run, and fails it once so many device-rounds are done; remembers what the run had to say.

    done: device-rounds of whole rounds so far.
    """

    def __init__(self, after: int | None = None):
        self.after, self.done, self.notes = after, 0, list[str]()

    def progress(self, stage: str, done: int, total: int) -> None:
        if stage != "train":
            return
        if self.after is not None and self.done + done >= self.after:
            raise ConnectionError("the plug was pulled")
        self.done += total if done == total else 0

    def note(self, text: str) -> None:
        self.notes.append(text)


def interrupted(settings: dict[str, Any], folder: Path, after: int) -> Path:
    """The folder of a run that failed after so many device-rounds."""
    try:
        simulate(check(settings, "test"), folder, Plug(after))
    except ConnectionError:
        return folder
    raise AssertionError("it came to its end")


def result(run: Run | None, folder: Path) -> tuple[str, str, int]:
    """What equal runs agree on."""
    assert run is not None
    return run.adapter_digest, log_digest(folder), len(run.rows)
