"""A run from beginning to end: prepare the federation, open the fleet, go round by round, leave the adapter behind."""

from __future__ import annotations

import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml

from fibec_ray import run_dir as run_dirs
from fibec_ray.config.experiment import Experiment
from fibec_ray.fleets.local import LocalFleet
from fibec_ray.fleets.site import Site
from fibec_ray.learning.adapter import save_adapter
from fibec_ray.learning.job import Job
from fibec_ray.learning.planning import plan_round
from fibec_ray.learning.prepare import Prepared, prepare_federation
from fibec_ray.learning.tally import Row, Tally
from fibec_ray.models.quiet import quiet_libraries
from fibec_ray.reports import DeviceReport
from fibec_ray.roundlog.writer import RoundLog
from fibec_ray.tensors import digest
from fibec_ray.types import Fleet, Progress

Logged = tuple[Row, list[DeviceReport], list[Row], list[Row]]
"""A row of `rounds`, and those of `devices`, `layers` and `evaluations` that go with it."""


class Watcher(Protocol):
    """Who looks on: the CLI's progress bar, or nobody."""

    def prepared(self, prepared: Prepared) -> None: ...

    def progress(self, stage: str, done: int, total: int) -> None: ...

    def placed(self, fleet: Fleet) -> None: ...

    def row(self, row: Row) -> None: ...


class Nobody:
    """The watcher of runs that are started from Python."""

    def prepared(self, prepared: Prepared) -> None:
        pass

    def progress(self, stage: str, done: int, total: int) -> None:
        pass

    def placed(self, fleet: Fleet) -> None:
        pass

    def row(self, row: Row) -> None:
        pass


@dataclass(frozen=True)
class Run:
    folder: Path
    prepared: Prepared
    rows: list[Row]
    """the `rounds` table, the initialisation phase first"""
    adapter_digest: str


def simulate(experiment: Experiment, folder: Path, watcher: Watcher | None = None) -> Run:
    """Runs the experiment. What is wrong with its settings, data or backbone is found before any actor starts."""
    watcher = watcher or Nobody()
    tally = Tally(experiment.task.metric, experiment.local.batch_size)
    folder = run_dirs.create(folder)
    quiet_libraries()
    prepared = prepare(experiment, folder)
    watcher.prepared(prepared)
    job = experiment.job(prepared.num_classes, prepared.label_words)
    log = RoundLog(folder, _metadata(experiment))
    summary = _summary(experiment, prepared)
    run_dirs.write_json(folder / "summary.json", {**summary, "status": "running"})
    site = Site(job, folder, cache_dir(), experiment.fleet.threads, experiment.fleet.known_lanes)
    fleet = make_fleet(experiment, site, watcher.progress)
    try:
        rows = []
        for row, reports, layers, evaluations in run_rounds(experiment, job, fleet, tally, watcher):
            log.append(row, reports, layers, evaluations)
            watcher.row(row)
            rows.append(row)
        adapter = fleet.adapter()
        save_adapter(adapter, tally.layout, experiment.method.peft, folder / "adapter")
    except BaseException:
        run_dirs.write_json(folder / "summary.json", {**summary, "status": "failed"})
        raise
    finally:
        fleet.close()
    fingerprint = digest(adapter)
    run_dirs.write_json(folder / "summary.json", {**summary, "status": "finished", "adapter_digest": fingerprint})
    return Run(folder, prepared, rows, fingerprint)


def run_rounds(experiment: Experiment, job: Job, fleet: Fleet, tally: Tally, watcher: Watcher) -> Iterator[Logged]:
    """The round loop. It knows neither the method nor where devices run. Yields what the round log keeps."""
    opened = fleet.open()
    watcher.placed(fleet)
    row, layers = tally.opening(opened)
    yield row, opened.reports, layers, []
    for t in range(experiment.rounds):
        result = fleet.run_round(plan_round(job, experiment.cohort_size, t))
        evaluation = fleet.evaluate(t) if experiment.evaluates(t) else None
        row, layers = tally.round(t, result, evaluation)
        yield row, result.reports, layers, tally.evaluations(t, evaluation)


def prepare(experiment: Experiment, folder: Path) -> Prepared:
    """Writes RUN/data and RUN/config.yaml; nothing if the input is refused, so that the folder can be used again."""
    prepared = prepare_federation(
        experiment.task,
        experiment.data,
        experiment.partition,
        experiment.backbone,
        experiment.num_devices,
        experiment.seed,
        folder / "data",
        experiment.method.peft.num_virtual,
        experiment.method.pooled,
    )
    run_dirs.write_yaml(folder / "config.yaml", resolved(experiment))
    return prepared


def make_fleet(experiment: Experiment, site: Site, progress: Progress) -> Fleet:
    if experiment.fleet.kind == "local":
        return LocalFleet(site, progress)
    from fibec_ray.fleets.ray_fleet import RayFleet

    return RayFleet(site, experiment.fleet, progress)


def resolved(experiment: Experiment) -> dict[str, Any]:
    """The experiment with every default filled in, as plain values; loads again to the same experiment."""
    return experiment.model_dump(mode="json")


def cache_dir() -> Path:
    """Where prepared base weights are kept on a node: FIBEC_RAY_CACHE, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "fibec_ray"
    return Path(os.environ.get("FIBEC_RAY_CACHE", default)).expanduser()


def _metadata(experiment: Experiment) -> dict[str, str]:
    config = yaml.safe_dump(resolved(experiment), sort_keys=False, allow_unicode=True)
    return {"run_id": uuid.uuid4().hex, "seed": str(experiment.seed), "git_commit": _git_commit(), "config": config}


def _git_commit() -> str:
    """Of the code that runs, if it is a checkout."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _summary(experiment: Experiment, prepared: Prepared) -> dict[str, Any]:
    return {
        "name": experiment.name,
        "method": experiment.method.name,
        "task": experiment.task.name,
        "metric": experiment.task.metric,
        "seed": experiment.seed,
        "rounds": experiment.rounds,
        "num_devices": experiment.num_devices,
        "cohort_size": experiment.cohort_size,
        "anchors": prepared.anchors,
        "heterogeneity": prepared.heterogeneity,
    }
