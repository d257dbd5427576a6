"""`fibec-ray replay`: runs one device-round again, in this process, and compares it with what was logged.

Where devices computed side by side (fleet.lanes), the whole lane group runs again: results depend on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fibec_ray.checkpoints import checkpoint
from fibec_ray.checkpoints.checkpoint import Checkpoint, read_state
from fibec_ray.errors import ConfigError, RunDirError, round_name, round_number
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.learning.planning import Group, Work, arrived, plan_of, works_of
from fibec_ray.learning.server import Server
from fibec_ray.models.process_state import quiet_libraries, restored
from fibec_ray.reports import DeviceReport
from fibec_ray.roundlog.reader import read_devices, row_differences, unknown_columns
from fibec_ray.roundlog.writer import device_row
from fibec_ray.runs.records import Record, lanes_of, last_logged, read_record, staged
from fibec_ray.runs.simulation import planner_of, worker_spec_of
from fibec_ray.types import SETUP_ROUND, RoundPlan


@dataclass(frozen=True)
class Replayed:
    """A device-round that was run again."""

    row: Mapping[str, Any]
    """the row of `devices` that it gives now"""
    differences: list[str]


@restored()
def replay(folder: Path, round_: int, device: int) -> Replayed:
    """Run one device-round again. The run directory is only read.

    Raises RunDirError if the checkpoint that it started from is gone.

    round_: -1 is the setup phase.
    """
    record = read_record(folder)
    quiet_libraries()
    plan = _plan(record, round_, device)
    start = None if round_ == SETUP_ROUND else _start(record, round_)
    lanes = lanes_of(record)
    work = _work(record, plan, device, lanes)
    group = work.devices
    known = start.manifest.states if start else {}
    states = {each: known[each] for each in group if each in known}
    with staged(record, lanes, states) as worker_spec:
        own = plan_of(worker_spec.job, plan, work.version, group, states)
        report = _again(worker_spec, own, group, start)[group.index(device)]
        row = device_row(report if start is None else arrived(report, plan))
    logged = [r for r in read_devices(record.folder).to_pylist() if (r["round"], r["device"]) == (round_, device)]
    if len(logged) != 1:
        raise RunDirError(f"{record.folder}: the log has {len(logged)} rows of device {device} in {round_name(round_)}")
    unknown = unknown_columns(record.folder, "devices")
    there = {column: value for column, value in logged[0].items() if column not in unknown}
    return Replayed(row, row_differences("devices", there, row))


def _again(worker_spec: WorkerSpec, plan: RoundPlan, group: Group, start: Checkpoint | None) -> list[DeviceReport]:
    if start is not None:
        start.refuse_other_base(worker_spec.base_fingerprint())
    worker = worker_spec.worker("replay")
    if start is None:
        return [report for _, report in worker.setup_group(group)]
    server = Server(worker_spec.job, worker.initial, worker.layout)
    server.restore(read_state(start.server))
    return [report for _, report in worker.train_group(plan, group, server.broadcast(plan.round))]


def _work(record: Record, plan: RoundPlan, device: int, lanes: int) -> Work:
    """The devices that computed side by side with this one."""
    federation = worker_spec_of(record.experiment, record.folder, record.identity).federation()
    return next(work for work in works_of(plan, federation.num_train, lanes) if device in work.devices)


def _plan(record: Record, round_: int, device: int) -> RoundPlan:
    """Raises ConfigError for a device-round that is not in the log."""
    last = last_logged(record.folder)
    if not SETUP_ROUND <= round_ <= last:
        raise ConfigError(f"--{round_name(round_)}: the log of {record.folder} has rounds 0 to {round_number(last)}")
    worker_spec = worker_spec_of(record.experiment, record.folder, record.identity)
    job = worker_spec.job
    if round_ == SETUP_ROUND:
        plan = RoundPlan(round_, job.rounds, tuple(range(job.num_devices if job.method.needs_setup else 0)), 0.0)
    else:
        plan = planner_of(worker_spec, round_, record.folder).plan(round_)
    if device not in plan.cohort:
        allowed = ", ".join(map(str, sorted(plan.cohort))) or "none, as this method has no initialisation phase"
        raise ConfigError(f"--device {device}: had no part in {round_name(round_)}; devices that had: {allowed}")
    return plan


def _start(record: Record, round_: int) -> Checkpoint:
    kept = checkpoint.rounds_kept(record.folder)
    if round_ not in kept:
        last = last_logged(record.folder)
        able = ", ".join(str(round_number(kept_round)) for kept_round in kept if kept_round <= last) or "none"
        raise RunDirError(
            f"{record.folder}: the checkpoint before {round_name(round_)} is not kept; rounds that can be replayed: "
            f"{able} (a run with checkpoint.keep=all keeps what any round needs)"
        )
    return checkpoint.load(record.folder, round_)
