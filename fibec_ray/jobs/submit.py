"""`fibec-ray submit`: an experiment becomes a job; one of the same name goes on in its run directory."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

from fibec_ray.config.experiment import Experiment
from fibec_ray.errors import ClusterError, ConfigError
from fibec_ray.files.storage import Storage, is_url
from fibec_ray.jobs.client import Cluster, Job
from fibec_ray.jobs.parcel import EXPERIMENT, packed

RUNS = "${FIBEC_RAY_RUNS:-$HOME/fibec_ray_runs}"
"""Where run directories go if nobody says: the shell of the cluster's head fills it in. Not quoted for that reason."""


def submit(cluster: Cluster, experiment: Experiment, name: str | None, out: str | None, installed: bool) -> str:
    """The job's id. out: the folder of run directories, a URL or a path that every node of the cluster sees.

    Raises ClusterError if the name is taken by a job that has not ended, or the cluster refuses the job.
    """
    jobs = cluster.jobs()
    name = checked(name) if name else free_name(experiment.name, jobs)
    id_ = next_attempt(name, jobs)
    run_dir = place_of(name, out)
    command = f"python -m fibec_ray run {EXPERIMENT} --out {quoted(run_dir)} --resume"
    with packed(experiment, installed) as runtime_env:
        cluster.submit(command, id_, runtime_env, {"fibec_name": name, "fibec_out": run_dir})
    return id_


def checked(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ConfigError(f"--name: {name!r}: expected letters, digits, '_' and '-'")
    return name


def free_name(wanted: str, jobs: Sequence[Job]) -> str:
    """The experiment's name, then NAME-2 and so on, as run directories are named."""
    base = re.sub(r"[^A-Za-z0-9_-]+", "-", wanted).strip("-_") or "run"
    taken, name, number = {job.name for job in jobs}, base, 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name


def next_attempt(name: str, jobs: Sequence[Job]) -> str:
    attempts = [job for job in jobs if job.name == name]
    for job in attempts:
        if not job.ended:
            raise ClusterError(
                f"--name: {name}: its job {job.id} is {job.status.lower()}; `fibec-ray stop {job.id}` it first, or "
                "choose another --name"
            )
    return f"{name}.{len(attempts) + 1}" if attempts else name


def place_of(name: str, out: str | None) -> str:
    """The run directory. Raises for an --out that no process of the cluster can have meant."""
    if out is None:
        return f"{RUNS}/{name}"
    if is_url(out):
        Storage(out)
    elif not out.startswith("/"):
        raise ConfigError(
            f"--out: {out}: a job has no folder of its own that lasts; give an absolute path that every node of the "
            "cluster sees, or a URL such as s3://BUCKET/runs"
        )
    return f"{out.rstrip('/')}/{name}"


def quoted(run_dir: str) -> str:
    """For the shell of the cluster's head, which fills in RUNS and takes the rest as it is."""
    return f'"{RUNS}"{shlex.quote(run_dir.removeprefix(RUNS))}' if run_dir.startswith(RUNS) else shlex.quote(run_dir)
