"""Who looks on at a run: the command line's progress bar, Ray's metrics, or nobody."""

from __future__ import annotations

from fibec_ray.learning.prepare import Prepared
from fibec_ray.learning.tally import Row
from fibec_ray.types import Fleet


class Watcher:
    """Is told what happens in a run. As it stands it does nothing with it."""

    def prepared(self, prepared: Prepared) -> None:
        """The data are there."""

    def placed(self, fleet: Fleet) -> None:
        """It is known where devices compute."""

    def progress(self, stage: str, done: int, total: int) -> None:
        """As `types.Progress`."""

    def row(self, row: Row) -> None:
        """A round has ended, and is in the log."""

    def note(self, text: str) -> None:
        """Something that a person should know."""


class Together(Watcher):
    """Several watchers as one."""

    def __init__(self, *watchers: Watcher):
        self._watchers = watchers

    def prepared(self, prepared: Prepared) -> None:
        for watcher in self._watchers:
            watcher.prepared(prepared)

    def placed(self, fleet: Fleet) -> None:
        for watcher in self._watchers:
            watcher.placed(fleet)

    def progress(self, stage: str, done: int, total: int) -> None:
        for watcher in self._watchers:
            watcher.progress(stage, done, total)

    def row(self, row: Row) -> None:
        for watcher in self._watchers:
            watcher.row(row)

    def note(self, text: str) -> None:
        for watcher in self._watchers:
            watcher.note(text)
