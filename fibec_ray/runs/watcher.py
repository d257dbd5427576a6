"""Who looks on at a run: the command line's progress bar, Ray's metrics, or nobody."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

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
        for name in (name for name in vars(Watcher) if not name.startswith("_")):
            setattr(self, name, partial(_tell, [getattr(watcher, name) for watcher in watchers]))


def _tell(calls: Sequence[Callable[..., None]], *what: Any) -> None:
    for call in calls:
        call(*what)
