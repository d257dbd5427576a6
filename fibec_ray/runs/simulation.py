"""A run from beginning to end: prepare the data, start the fleet, run the rounds, save the adapter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fibec_ray import environment
from fibec_ray.checkpoints.checkpoint import Checkpoint
from fibec_ray.checkpoints.checkpointer import Checkpointer
from fibec_ray.checkpoints.identity import Identity, identify
from fibec_ray.config.device_files import with_device_files
from fibec_ray.config.experiment import Experiment
from fibec_ray.errors import RunDirError, round_name
from fibec_ray.files import run_dir as run_dirs
from fibec_ray.files.run_dir import Claim
from fibec_ray.fleets.gpus import torch_device
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.placement import Need
from fibec_ray.fleets.ray.local_cluster import LocalCluster, started_early
from fibec_ray.fleets.worker_spec import WorkerSpec
from fibec_ray.garbage import large_steps
from fibec_ray.learning.budget import Budget
from fibec_ray.learning.job import Job
from fibec_ray.learning.planner import Planner
from fibec_ray.learning.prepare import Prepared, Recipe, prepare_federation
from fibec_ray.learning.run_totals import Row, RunTotals
from fibec_ray.models.process_state import quiet_libraries, restored
from fibec_ray.parts.own import keep_files
from fibec_ray.preflight.check import refuse_misfit
from fibec_ray.preflight.foresight import Foresight
from fibec_ray.reports import DeviceReport
from fibec_ray.roundlog.reader import read_reports, read_rounds
from fibec_ray.runs.callbacks import Callback, CallbackList, Summary
from fibec_ray.runs.run_log import git_commit, open_log
from fibec_ray.runs.save import save_model
from fibec_ray.runs.saved_model import describe
from fibec_ray.tensors import digest
from fibec_ray.types import SETUP_ROUND, Fleet, Progress


@dataclass(frozen=True)
class Logged:
    """A round's row of `rounds`, and those of `devices`, `layers` and `evaluations` that go with it."""

    row: Row
    reports: list[DeviceReport]
    layers: list[Row]
    evaluations: list[Row]
    devices: Collection[int]
    """that were at work, whether or not their update came"""
    under_way: Mapping[int, int] = field(default_factory=dict)
    """as in `RoundPlan`"""


@dataclass(frozen=True)
class Finished:
    """A run that has finished."""

    folder: Path
    prepared: Prepared
    rows: list[Row]
    """the `rounds` table, the initialisation phase first"""
    adapter_digest: str


@restored()
def simulate(
    experiment: Experiment, folder: Path, callback: Callback | None = None, waiting: LocalCluster | None = None
) -> Finished:
    """Run an experiment in a new folder.

    waiting: a local Ray cluster that may be starting already. Settings, data, backbone and memory are checked before
    any actor starts. Raises UserError if one does not fit, and then leaves nothing behind.
    """
    callback = callback or Callback()
    early = started_early(experiment.fleet, experiment.num_devices, callback.on_message, waiting)
    with large_steps(), run_dirs.claimed(folder) as claim, early as cluster:
        quiet_libraries()
        experiment = with_device_files(experiment, claim.folder)
        prepared = prepare(experiment, claim.folder)
        sources = experiment.sources
        identity = identify(claim.folder, resolved(experiment), prepared, git_commit(), sources)
        identity.write(claim.folder)
        return carry_on(experiment, claim, identity, None, callback, cluster)


def carry_on(
    experiment: Experiment,
    claim: Claim,
    identity: Identity,
    start: Checkpoint | None,
    callback: Callback,
    cluster: LocalCluster | None,
) -> Finished:
    """Run from a checkpoint (None: from the setup phase) to the end. The folder must hold nothing later.

    cluster: a local Ray cluster that is starting; None: the fleet joins or starts one if it needs any.
    """
    folder = claim.folder
    callback.on_data(identity.prepared)
    worker_spec = worker_spec_of(experiment, folder, identity)
    totals = totals_of(experiment, worker_spec.job)
    need = refuse_misfit(experiment, worker_spec.job, folder, cache_dir())
    log = open_log(experiment, identity, folder, start.manifest.log if start else {})
    rows = read_rounds(folder).to_pylist() if start else []
    summary = Summary(
        folder, experiment, identity.prepared, callback.on_message, identity.versions.get("fibec_ray", "")
    )
    summary.write("running")
    callback = CallbackList(callback, summary)
    fleet = make_fleet(experiment, worker_spec, callback.on_progress, callback.on_message, need, cluster)
    checkpointer = Checkpointer(folder, identity.run_id, experiment.checkpoint, worker_spec.store, fleet, start)
    try:
        for logged in run_rounds(experiment, worker_spec, fleet, totals, callback, start, folder):
            claim.begin()
            log.append(logged.row, logged.reports, logged.layers, logged.evaluations)
            round_ = logged.row["round"]
            last = round_ == experiment.rounds - 1
            if checkpointer.due(round_, last):
                log.flush()
            checkpointer.after(round_, logged.devices, totals, log.newest, last, logged.under_way)
            callback.on_reports(logged.reports)
            callback.on_round_end(logged.row)
            rows.append(logged.row)
        checkpointer.finish(experiment.rounds - 1, totals, log.newest)
        adapter = fleet.adapter()
        about = describe(experiment, identity, label_names(experiment), fleet.base)
        save_model(adapter, totals.layout, experiment, about, rows[-1] if rows else None, folder / "adapter")
    except BaseException:
        with suppress(RunDirError):  # on a full disk this fails too, and is not what to tell
            log.flush()
        with suppress(RunDirError):
            summary.write("failed", fleet)
        raise
    finally:
        checkpointer.close()
        fleet.close()
    run = Finished(folder, identity.prepared, rows, digest(adapter))
    summary.write("finished", fleet, lanes=fleet.lanes, adapter_digest=run.adapter_digest)
    return run


def run_rounds(
    experiment: Experiment,
    worker_spec: WorkerSpec,
    fleet: Fleet,
    totals: RunTotals,
    callback: Callback,
    start: Checkpoint | None = None,
    log_dir: Path | None = None,
) -> Iterator[Logged]:
    """The round loop, the same for every method and fleet. Yields what the round log keeps.

    log_dir: the folder with the log of the rounds before `start`.
    """
    planner = planner_of(worker_spec, start.manifest.next_round if start else 0, log_dir)
    if start is None:
        opened = fleet.setup()
        callback.on_start(fleet)
        evaluation = fleet.evaluate(SETUP_ROUND) if experiment.evaluates(SETUP_ROUND) else None
        fleet.begin_round(planner.plan(0))  # devices train while the driver computes scores, logs and saves
        row, layers = totals.setup(opened, evaluation)
        evaluations = totals.evaluations(SETUP_ROUND, evaluation)
        row |= {"adapter_digest": fleet.digest()}
        yield Logged(row, opened.reports, layers, evaluations, range(worker_spec.job.num_devices))
    else:
        totals.restore(fleet.restore(start.server, start.manifest.states), start.manifest.totals)
        start.refuse_other_base(fleet.base)
        callback.on_start(fleet)
    for t in range(start.manifest.next_round if start else 0, experiment.rounds):
        plan = planner.plan(t)
        result = fleet.run_round(plan)
        planner.learn(result.reports)
        for report in result.reports:
            if report.quarantined is not None:
                callback.on_message(f"{round_name(t)}: device {report.device} is quarantined: {report.quarantined}")
        evaluation = fleet.evaluate(t) if experiment.evaluates(t) else None
        if t + 1 < experiment.rounds:
            fleet.begin_round(planner.plan(t + 1))
        row, layers = totals.round(plan, result, evaluation)
        evaluations = totals.evaluations(t, evaluation)
        row |= {"adapter_digest": fleet.digest()}
        yield Logged(row, result.reports, layers, evaluations, plan.cohort, plan.under_way)


def planner_of(worker_spec: WorkerSpec, next_round: int, log_dir: Path | None = None) -> Planner:
    """A planner, ready to plan `next_round`. log_dir: the folder with the log of earlier rounds."""
    job = worker_spec.job
    federation = worker_spec.federation()
    foresee = Foresight.of(job, federation) if job.needs_foresight else None
    planner = Planner(job, federation.num_train(range(job.num_devices)), foresee)
    logged = (
        read_reports(log_dir, next_round) if log_dir is not None and next_round and job.sampler.uses_history else ()
    )
    planner.skip_to(next_round, logged)
    return planner


def prepare(experiment: Experiment, folder: Path) -> Prepared:
    """Write RUN/data and RUN/config.yaml.

    Writes nothing if the input is refused, so that the folder can be used again.
    """
    recipe = Recipe(
        task=experiment.task,
        data=experiment.data,
        partition=experiment.partition,
        backbone=experiment.backbone,
        num_devices=experiment.num_devices,
        seed=experiment.seed,
        num_virtual=experiment.method.peft.num_virtual,
        pooled=experiment.method.pooled,
    )
    prepared = prepare_federation(recipe, folder / "data")
    write_settings(experiment, folder / "config.yaml")
    return prepared


def write_settings(experiment: Experiment, path: Path) -> None:
    """The experiment as a YAML that loads again to the same one, and the files of a user's own parts beside it."""
    keep_files(experiment.sources, path.parent)
    run_dirs.write_yaml(path, resolved(experiment))


def make_fleet(
    experiment: Experiment,
    worker_spec: WorkerSpec,
    progress: Progress,
    note: Callable[[str], None],
    need: Need,
    cluster: LocalCluster | None,
) -> Fleet:
    """The fleet that the experiment asks for: in this process, or actors on Ray."""
    worker_spec = replace(worker_spec, beside=need.beside, most_lanes=need.lanes)
    if experiment.fleet.kind == "local":
        return LocalFleet(worker_spec, progress)
    from fibec_ray.fleets.ray.fleet import RayFleet

    return RayFleet(worker_spec, progress, note, need, cluster)


def totals_of(experiment: Experiment, job: Job) -> RunTotals:
    """The running totals of a run, from its beginning."""
    classify = partial(experiment.system.speed_classes, experiment.seed)
    return RunTotals(experiment.task, experiment.local.batch_size, classify, Budget(job).epsilon_after)


def resolved(experiment: Experiment) -> dict[str, Any]:
    """The experiment with every default filled in, as plain values; loads again to the same experiment."""
    return experiment.model_dump(mode="json")


def cache_dir() -> Path:
    """Where prepared base weights are kept on a node: FIBEC_RAY_CACHE, or the user's cache folder."""
    default = Path(environment.read("XDG_CACHE_HOME") or "~/.cache") / "fibec_ray"
    return Path(environment.read("FIBEC_RAY_CACHE") or default).expanduser()


def worker_spec_of(experiment: Experiment, folder: Path, identity: Identity) -> WorkerSpec:
    """What worker processes need to host the run's devices. The folder must have the run's data."""
    job = experiment.job(identity.prepared.answers(experiment.task))
    fleet = experiment.fleet
    # Actors of a Ray fleet go by the GPUs that Ray assigns; this is where the driver runs a part of it again.
    gpus = fleet.gpus if fleet.kind == "local" else (0 if fleet.gpu_shares == {0} else None)
    wanted = fleet.device if fleet.kind == "local" else "auto"
    device = torch_device(gpus, torch.cuda.is_available(), wanted)
    return WorkerSpec(job, folder, cache_dir(), fleet, device)


def label_names(experiment: Experiment) -> tuple[str, ...]:
    """Names of the classes, labels or tags that a model scores; () where it gives texts or values."""
    return experiment.task.effective(experiment.data).score_names
