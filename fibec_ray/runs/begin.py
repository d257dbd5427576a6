"""Starts or continues a run in a folder or at a URL: what `fibec-ray run` and `fibec_ray.run` share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fibec_ray.config.device_files import with_kept_paths
from fibec_ray.config.experiment import Experiment
from fibec_ray.config.load import first_difference
from fibec_ray.environment import read
from fibec_ray.errors import RunDirError
from fibec_ray.files.run_dir import absolute, alone, failing_plainly, half_made
from fibec_ray.files.storage import Storage, is_url
from fibec_ray.fleets.ray.local_cluster import LocalCluster
from fibec_ray.interrupts import signals_interrupt
from fibec_ray.runs.callbacks import Callback
from fibec_ray.runs.mirror import Mirror, make_ready, mirrored
from fibec_ray.runs.records import binding, finished_digest, read_record
from fibec_ray.runs.resume import resume_record
from fibec_ray.runs.simulation import Finished, cache_dir, simulate


@contextmanager
def workplace(out: str, resume: bool, warn: Callable[[str], None]) -> Iterator[Path]:
    """The folder to work in. For a URL, a local folder that is copied there while the block runs."""
    if not is_url(out):
        with signals_interrupt():
            yield Path(out)
        return
    storage = Storage(out)
    if not resume and storage.exists():
        raise RunDirError(f"{out}: is not empty; choose another --out, or continue the run in it with --resume")
    folder = _near(out)
    busy = f"{out}: another process on this machine runs it; wait for it, or stop it"
    with alone(folder, Path(f"{folder}.lock"), busy, "; set FIBEC_RAY_RUNS to another"):
        mirror = Mirror(storage, folder, alike=make_ready(folder, storage, warn))
        with mirrored(mirror, warn):
            yield folder


def begin(
    experiment: Experiment, folder: Path, resume: bool, callback: Callback, cluster: LocalCluster | None = None
) -> Finished | None:
    """Run the experiment to its end. Returns None if it had finished before.

    cluster: a local Ray cluster that may be starting already.
    resume: continue the run of this experiment in the folder, or start one if there is none. `fleet` and `checkpoint`
    may differ from its start. Raises RunDirError if the folder holds a run of another experiment.
    """
    folder = absolute(folder)
    if not resume or not _has_begun(folder):
        return simulate(experiment, folder, callback, cluster)
    settings = experiment.model_dump(mode="json", include={"fleet", "checkpoint"})
    record = read_record(folder, [f"{key}={json.dumps(value)}" for key, value in settings.items()])
    experiment = with_kept_paths(experiment, record.folder)
    if binding(record.experiment) != binding(experiment):
        difference = first_difference(binding(record.experiment), binding(experiment))
        raise RunDirError(f"{folder}: holds a run of another experiment ({difference}); choose another --name or --out")
    record.identity.refuse_other_parts(experiment.sources, folder)
    if finished_digest(folder) is not None:
        return None
    return resume_record(record, callback, cluster)


def _has_begun(folder: Path) -> bool:
    """Otherwise `simulate` starts a run there, or raises the error that says why it cannot."""
    with failing_plainly(folder):
        known = [folder / "config.yaml", folder / "checkpoints" / "run.json"]
        return folder.is_dir() and not half_made(folder) and any(path.is_file() for path in known)


def _near(out: str) -> Path:
    """The local folder for a URL, in FIBEC_RAY_RUNS if set: devices on other nodes need to see it."""
    shared = read("FIBEC_RAY_RUNS")
    return Path(shared or cache_dir() / "runs") / ".urls" / hashlib.blake2b(out.encode(), digest_size=8).hexdigest()
