"""`fibec-ray submit`: run an experiment as a job of a cluster. A job of the same name goes on in its run directory."""

from __future__ import annotations

import re
import shlex
import uuid
from collections.abc import Sequence
from contextlib import suppress

from fibec_ray.config.experiment import Experiment
from fibec_ray.errors import ClusterError, ConfigError
from fibec_ray.files.storage import Storage, is_url
from fibec_ray.jobs.client import HELPER, Cluster, Job
from fibec_ray.jobs.follow import settled
from fibec_ray.jobs.parcel import EXPERIMENT, packed

RUNS = "${FIBEC_RAY_RUNS:-$HOME/fibec_ray_runs}"
"""The default folder of run directories. The shell of the cluster's head fills it in, so it is not quoted."""
HOME = "~/"
"""What an --out may begin with: the home on the cluster's head."""
MARK = "fibec-ray-folder:"


def submit(cluster: Cluster, experiment: Experiment, name: str | None, out: str | None, installed: bool) -> str:
    """Submit the experiment; returns the job's id.

    out: the folder of run directories, a URL or a path that every node of the cluster sees. Raises ClusterError if a
    running job has the name, or the cluster refuses the job; DataError or ModelError for files that cannot travel.
    """
    jobs = cluster.jobs()
    name = checked(name) if name else free_name(experiment.name, jobs)
    id_ = next_attempt(name, jobs)
    run_dir = place_of(name, out)
    with packed(experiment, installed) as runtime_env:
        run_dir = expanded(cluster, run_dir)
        command = f"python -m fibec_ray run {EXPERIMENT} --out {quoted(run_dir)} --resume"
        cluster.submit(command, id_, runtime_env, {"fibec_name": name, "fibec_out": run_dir})
    return id_


def expanded(cluster: Cluster, run_dir: str) -> str:
    """The run directory as an absolute path. A short job asks the cluster's head what the beginning stands for.

    What it cannot find out stays, and the shell of the job fills it in.
    """
    start = next((part for part in (RUNS, HOME) if run_dir.startswith(part)), None)
    if start is None:
        return run_dir
    id_ = f"folder-{uuid.uuid4().hex}"
    cluster.submit(f'echo "{MARK}{"$HOME/" if start == HOME else start}"', id_, {}, {HELPER: "folder"})
    with suppress(ClusterError):  # a busy cluster; the job itself will wait its turn
        settled(cluster, id_)
    lines = [line for line in cluster.log(id_).splitlines() if line.startswith(f"{MARK}/")]
    if not lines:
        return run_dir
    return f"{lines[-1].removeprefix(MARK).rstrip('/')}/{run_dir.removeprefix(start).lstrip('/')}"


def checked(name: str) -> str:
    """The name, if it is a valid name of a job. Raises ConfigError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name):
        raise ConfigError(f"--name: {name!r}: expected letters, digits, '_' and '-'")
    return name


def free_name(wanted: str, jobs: Sequence[Job]) -> str:
    """The experiment's name; NAME-2, NAME-3 and so on if it is taken."""
    base = re.sub(r"[^A-Za-z0-9_-]+", "-", wanted).strip("-_") or "run"
    taken, name, number = {job.name for job in jobs}, base, 1
    while name in taken:
        number += 1
        name = f"{base}-{number}"
    return name


def next_attempt(name: str, jobs: Sequence[Job]) -> str:
    """Id of the next attempt at a job. Raises ClusterError while one is running."""
    attempts = [job for job in jobs if job.name == name]
    for job in attempts:
        if not job.ended:
            raise ClusterError(
                f"--name: {name}: its job {job.id} is {job.status.lower()}; `fibec-ray stop {job.id}` it first, or "
                "choose another --name"
            )
    return f"{name}.{len(attempts) + 1}" if attempts else name


def place_of(name: str, out: str | None) -> str:
    """The run directory. Raises ConfigError or StorageError for an --out that a job cannot use."""
    if out is None:
        return f"{RUNS}/{name}"
    if is_url(out):
        Storage(out)
    elif not out.startswith(("/", HOME)):
        raise ConfigError(
            f"--out: {out}: is relative, and a job's own folder is removed when the job ends; give an absolute path "
            "that every node of the cluster sees, ~/FOLDER, or a URL such as s3://BUCKET/runs"
        )
    return f"{out.rstrip('/')}/{name}"


def quoted(run_dir: str) -> str:
    """For the shell of the cluster's head, which fills in RUNS or its home and takes the rest as it is."""
    for start, words in ((RUNS, f'"{RUNS}"'), (HOME, '"$HOME"/')):
        if run_dir.startswith(start):
            return words + shlex.quote(run_dir.removeprefix(start))
    return shlex.quote(run_dir)
