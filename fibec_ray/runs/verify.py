"""`fibec-ray verify`: runs some rounds again, in this process, and compares them with what the run logged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fibec_ray.checkpoints import checkpoint
from fibec_ray.checkpoints.checkpoint import SERVER, Checkpoint
from fibec_ray.errors import RunDirError, round_name
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.models.process_state import quiet_libraries
from fibec_ray.roundlog.parts import check_parts
from fibec_ray.roundlog.reader import differences, num_rows
from fibec_ray.runs.callbacks import Callback
from fibec_ray.runs.records import Record, finished_digest, lanes_of, last_logged, read_record, staged
from fibec_ray.runs.run_log import open_log
from fibec_ray.runs.simulation import run_rounds, totals_of
from fibec_ray.tensors import digest
from fibec_ray.types import SETUP_ROUND, Fleet


@dataclass(frozen=True)
class Verified:
    """The rounds that were run again, and where they differ from the log."""

    first: int
    """the first of the rounds that were run again; -1 is the initialisation phase"""
    last: int
    compared: Mapping[str, int]
    """number of values compared, by kind"""
    differences: list[str]


def verify(folder: Path, num_rounds: int = 1, from_start: bool = False) -> Verified:
    """Run some rounds again, from the kept checkpoint that leaves num_rounds to the end, or from the start.

    The run directory is only read. Raises RunDirError if no round has been logged.
    """
    record = read_record(folder)
    quiet_libraries()
    last = last_logged(record.folder)
    if last < 0:
        raise RunDirError(f"{record.folder}: no round has been logged yet")
    start = None if from_start else _start(record, last, num_rounds)
    first = start.manifest.next_round if start else SETUP_ROUND
    until = min(last, (first if start else 0) + num_rounds - 1)
    with staged(record, lanes_of(record), start.manifest.states if start else {}) as worker_spec:
        fleet = LocalFleet(worker_spec)
        _run(record, worker_spec, fleet, start, until)
        found = _damage(record, start) + differences(record.folder, worker_spec.run_dir, first, until)
        compared = num_rows(worker_spec.run_dir)
        _compare_state(record, worker_spec, fleet, until, compared, found)
    return Verified(first, until, compared, found)


def _start(record: Record, last: int, num_rounds: int) -> Checkpoint:
    """The kept checkpoint num_rounds before the end of the log, or the nearest one."""
    kept = [round_ for round_ in checkpoint.rounds_kept(record.folder) if round_ <= last]
    if not kept:
        raise RunDirError(
            f"{record.folder}: no checkpoint is kept from before a logged round; verify the first rounds instead "
            "(--from-start), and have the next run keep more (checkpoint.keep)"
        )
    wanted = last + 1 - num_rounds
    return checkpoint.load(record.folder, max((r for r in kept if r <= wanted), default=kept[0]))


def _damage(record: Record, start: Checkpoint | None) -> list[str]:
    """Damage in the log of the rounds before the checkpoint, which are not run again."""
    if start is None:
        return []
    try:
        check_parts(record.folder, record.identity.run_id, start.manifest.next_round - 1, start.manifest.log)
    except RunDirError as error:
        return [str(error)]
    return []


def _run(record: Record, worker_spec: WorkerSpec, fleet: Fleet, start: Checkpoint | None, until: int) -> None:
    experiment = record.experiment
    log = open_log(experiment, record.identity, worker_spec.run_dir)
    totals = totals_of(experiment, worker_spec.job)
    num_parts = until + 1 - start.manifest.next_round if start else until + 2
    for logged in islice(
        run_rounds(experiment, worker_spec, fleet, totals, Callback(), start, record.folder), num_parts
    ):
        log.append(logged.row, logged.reports, logged.layers, logged.evaluations)
    log.flush()


def _same_state(one: Path, other: Path) -> bool:
    """True if two server states are equal; those of earlier releases have other names for the same tensors."""
    first, second = checkpoint.read_state(one), checkpoint.read_state(other)
    return list(first) == list(second) and digest(first) == digest(second)


def _compare_state(
    record: Record, worker_spec: WorkerSpec, fleet: Fleet, until: int, compared: dict[str, int], found: list[str]
) -> None:
    """The server's whole state with the checkpoint after the last round, and the adapter with the final one."""
    if until + 1 in checkpoint.rounds_kept(record.folder):
        compared["checkpoints"] = 1
        again, kept = worker_spec.run_dir / SERVER, checkpoint.folder_of(record.folder, until + 1) / SERVER
        wanted = checkpoint.load(record.folder, until + 1).manifest.server
        if fleet.save(again)() != wanted and not _same_state(again, kept):
            found.append(f"the server's state before {round_name(until + 1)} is not that of the checkpoint")
    final = finished_digest(record.folder)
    if final is not None and until == record.experiment.rounds - 1:
        compared["final adapters"] = 1
        if digest(fleet.adapter()) != final:
            found.append("the final adapter is not that of summary.json")
