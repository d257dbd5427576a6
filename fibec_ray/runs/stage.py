"""A temporary folder to run again in what a run directory holds, without touching it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from fibec_ray.errors import RunDirError
from fibec_ray.fleets.site import Site
from fibec_ray.runs.records import Record
from fibec_ray.runs.simulation import site_of
from fibec_ray.types import States


@contextmanager
def staged(record: Record, lanes: int, states: States) -> Iterator[Site]:
    """Where devices find the run's data and the given states, and leave new ones.

    Raises RunDirError if a state is not there any more.
    """
    with TemporaryDirectory(prefix="fibec-ray-") as name:
        site = site_of(record.experiment, Path(name), record.identity)
        site = replace(site, fleet=site.fleet.model_copy(update={"lanes": lanes}))
        (site.run_dir / "data").symlink_to(record.folder / "data", target_is_directory=True)
        origin = site_of(record.experiment, record.folder, record.identity)
        for device, ref in states.items():
            state, link = (place.store.path(device, ref.version) for place in (origin, site))
            if not state.is_file():
                raise RunDirError(f"{state}: the device's state that the checkpoint counts on is missing")
            link.parent.mkdir(parents=True)
            link.symlink_to(state)
        yield site
