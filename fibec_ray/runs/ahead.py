"""Starts a run's local Ray cluster before torch is imported and the settings are checked.

Importing torch keeps one core busy for a second or more. Ray starts on the others meanwhile. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fibec_ray.config.reading import early_settings
from fibec_ray.errors import FibecError
from fibec_ray.fleets.ray.local_cluster import LocalCluster, start

DEFAULT_STORE_MB = 500
"""As in `FleetConfig`; a test compares them."""


@dataclass(frozen=True)
class Unchecked:
    """A cluster's settings as they are written."""

    object_store_mb: int
    num_actors: int | None


@contextmanager
def started_ahead(path: Path, overrides: Sequence[str], note: Callable[[str], None]) -> Iterator[LocalCluster | None]:
    """A local cluster for the experiment in this block; None if it seems to need none.

    It raises nothing for settings that are wrong, since they are checked in the block. The cluster ends with the block.
    """
    cluster = None
    with suppress(FibecError):
        raw = early_settings(path, overrides)
        if (settings := _of_a_cluster(raw.get("fleet"))) is not None:
            cluster = start(settings, note, _number(raw.get("num_devices")))
    try:
        yield cluster
    finally:
        if cluster is not None:
            cluster.abandon()


def _of_a_cluster(fleet: Any) -> Unchecked | None:
    """The settings of the local cluster that a `fleet` section asks for; None if it asks for none or is unusual."""
    fleet = {} if fleet is None else fleet
    if not isinstance(fleet, dict) or fleet.get("kind", "ray") != "ray" or fleet.get("address") is not None:
        return None
    store = _number(fleet.get("object_store_mb", DEFAULT_STORE_MB))
    return None if store is None else Unchecked(store, _number(fleet.get("num_actors")))


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None
