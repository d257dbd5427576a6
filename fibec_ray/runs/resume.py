"""`fibec-ray resume`: continues a run that was stopped or failed, from its newest complete checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from fibec_ray.checkpoints import checkpoint
from fibec_ray.checkpoints.checkpoint import Checkpoint
from fibec_ray.checkpoints.identity import read_identity
from fibec_ray.data.stamps import changes
from fibec_ray.errors import RunDirError, round_name
from fibec_ray.files.run_dir import absolute, failing_plainly, locked, next_free
from fibec_ray.fleets.ray.local_cluster import LocalCluster, started_early
from fibec_ray.learning.store import StateStore
from fibec_ray.models.process_state import quiet_libraries, restored
from fibec_ray.roundlog.parts import check_parts
from fibec_ray.roundlog.schema import TABLES
from fibec_ray.runs.callbacks import Callback
from fibec_ray.runs.records import Record, finished_digest, last_logged, products_of, read_record
from fibec_ray.runs.run_log import open_log
from fibec_ray.runs.simulation import Finished, carry_on, worker_spec_of
from fibec_ray.types import SETUP_ROUND


def resume(folder: Path, overrides: Sequence[str] = (), callback: Callback | None = None) -> Finished | None:
    """Continue a run to its end, with the same result as without the interruption. None if it had finished before.

    overrides: of `fleet` and `checkpoint`. Raises RunDirError if the folder is not a run directory, another process
    runs it, settings or data have changed, or no checkpoint can be used.
    """
    folder = absolute(folder)
    if finished_digest(folder) is not None:
        return None
    return resume_record(read_record(folder, overrides), callback or Callback())


@restored()
def resume_record(record: Record, callback: Callback, waiting: LocalCluster | None = None) -> Finished:
    """Continue a run that has not finished. waiting: a local Ray cluster that may be starting already."""
    fleet, num_devices = record.experiment.fleet, record.experiment.num_devices
    early = started_early(fleet, num_devices, callback.on_message, waiting)
    with locked(record.folder) as claim, early as cluster:
        quiet_libraries()
        if read_identity(record.folder) != record.identity:  # another process was faster
            raise RunDirError(
                f"{record.folder}: another run has begun here in the meantime; resume again to continue that one"
            )
        start = rewind(record, callback.on_message)
        if start is not None:
            record = record.computing(start.manifest.lanes, products_of(record))
        return carry_on(record.experiment, claim, record.identity, start, callback, cluster)


def rewind(record: Record, note: Callable[[str], None]) -> Checkpoint | None:
    """Undo what the run did after its newest complete checkpoint, or all of it if there is none.

    note: gets messages.
    """
    worker_spec = worker_spec_of(record.experiment, record.folder, record.identity)
    log = open_log(record.experiment, record.identity, record.folder)
    start = newest_whole(record, worker_spec.store, note)
    if start is None:
        _set_aside(record.folder, note)
    first = start.manifest.next_round if start else SETUP_ROUND
    log.rewind(first)
    worker_spec.store.rewind(first)
    checkpoint.rewind(record.folder, first)
    if changed := record.identity.other_versions():
        note(f"other program versions than at the start may give other bits: {changed}")
    if changed := changes(record.identity.prepared.sources):
        note(f"{changed}; the run goes on with its own copy of the data, {record.folder / 'data'}")
    where = f"{round_name(first)}" if start else "the initialisation phase"
    note(f"resuming at {where} of {record.experiment.rounds} rounds")
    return start


def _set_aside(folder: Path, note: Callable[[str], None]) -> None:
    """Move the log and the devices' states away if checkpoints existed once: they may be restored later.

    The first checkpoint is complete before round 1 is logged.
    """
    last = last_logged(folder)
    if last < 1:
        return
    aside = next_free(folder, "set-aside")
    with failing_plainly(folder):
        for name in ("checkpoints/devices", *reversed(TABLES)):
            if (folder / name).exists():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).rename(aside / name)
    note(f"all checkpoints are gone, so the run begins again; the log up to {round_name(last)} is kept in {aside}")


def newest_whole(record: Record, store: StateStore, note: Callable[[str], None]) -> Checkpoint | None:
    """The newest complete checkpoint; None if none was ever made. Raises RunDirError if all are damaged."""
    rounds = checkpoint.rounds_kept(record.folder)
    for next_round in reversed(rounds):
        try:
            found = checkpoint.load(record.folder, next_round)
            _refuse_gaps(record, found, store)
            return found
        except RunDirError as error:
            note(f"the checkpoint before {round_name(next_round)} cannot be used: {error}")
            reason = str(error)
    if rounds:
        raise RunDirError(f"{record.folder}: no checkpoint can be used, the oldest because {reason}; start a new run")
    return None


def _refuse_gaps(record: Record, found: Checkpoint, store: StateStore) -> None:
    """Raise RunDirError if a file that the checkpoint needs is missing or changed."""
    manifest = found.manifest
    if manifest.run_id != record.identity.run_id:
        raise RunDirError(f"{found.folder}: belongs to another run ({manifest.run_id}, not {record.identity.run_id})")
    check_parts(record.folder, manifest.run_id, manifest.next_round - 1, manifest.log)
    for device, ref in manifest.states.items():
        store.read(device, ref)
