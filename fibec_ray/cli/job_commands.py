"""The commands that talk to a cluster: submit, jobs, logs, stop, fetch.

Heavy imports come after parsing, as in main.py.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fibec_ray.cli.argument_types import add_config, path
from fibec_ray.cli.entry import advice, warn
from fibec_ray.cli.parsing import Parsers

if TYPE_CHECKING:
    from fibec_ray.jobs.client import Cluster

TITLE = "use a cluster"


def add(parsers: Parsers) -> None:
    """Add these commands to the parser."""
    submit = parsers.add_parser("submit", help="run an experiment as a job of a Ray cluster")
    add_config(submit)
    submit.add_argument("--name", metavar="N", help="name of the job; an earlier job with this name is continued")
    submit.add_argument(
        "--out",
        metavar="PLACE",
        help="folder for run directories: a URL, or a path (absolute or ~/...) that every node sees (default: "
        "$FIBEC_RAY_RUNS on the cluster's head node, else ~/fibec_ray_runs there)",
    )
    submit.add_argument("--follow", action="store_true", help="print the log until the job ends; exit 1 if it fails")
    submit.add_argument(
        "--installed", action="store_true", help="use the fibec_ray installed on the cluster; send no code"
    )
    _finish(submit, _submit)

    _finish(parsers.add_parser("jobs", help="list a cluster's jobs"), _jobs, prints=True)

    logs = parsers.add_parser("logs", help="print a job's log")
    logs.add_argument("job", metavar="JOB", help="id, or a name for its newest job")
    logs.add_argument("--follow", action="store_true", help="keep printing until the job ends; exit 1 if it fails")
    _finish(logs, _logs, prints=True)

    stop = parsers.add_parser("stop", help="stop a job; `submit` with its name continues it")
    stop.add_argument("job", metavar="JOB", help="id, or a name for its newest job")
    _finish(stop, _stop)

    fetch = parsers.add_parser("fetch", help="copy a job's run directory to this machine")
    fetch.add_argument("job", metavar="JOB", help="id, or a name for its newest job")
    fetch.add_argument("dest", type=path, nargs="?", metavar="DEST", help="default: runs/NAME, then runs/NAME-2 ...")
    fetch.add_argument(
        "--shared",
        action="store_true",
        help="copy all of the job's folder directly, which this machine can read",
    )
    _finish(fetch, _fetch)


def _finish(parser: argparse.ArgumentParser, command: Any, prints: bool = False) -> None:
    parser.add_argument(
        "--address",
        metavar="URL",
        help="the cluster's dashboard, which takes jobs (default: $RAY_API_SERVER_ADDRESS or $RAY_ADDRESS, else "
        "http://127.0.0.1:8265)",
    )
    parser.set_defaults(command=command, prints=prints)


def _cluster(arguments: argparse.Namespace) -> Cluster:
    from fibec_ray.jobs.client import Cluster

    return Cluster(arguments.address, warn)


def _submit(arguments: argparse.Namespace) -> None:
    from fibec_ray.config.load import load_experiment
    from fibec_ray.jobs.submit import submit

    experiment = load_experiment(arguments.config, arguments.overrides)
    cluster = _cluster(arguments)
    id_ = submit(cluster, experiment, arguments.name, arguments.out, arguments.installed)
    if arguments.follow:
        print(f"job {id_} on {cluster.url}", flush=True)
        _follow(cluster, id_)
    else:
        print(f"job {id_} on {cluster.url}; next: fibec-ray logs {id_} --follow, stop {id_}, fetch {id_}")


def _jobs(arguments: argparse.Namespace) -> None:
    from fibec_ray.cli.job_table import job_table

    job_table(_cluster(arguments).jobs())


def _logs(arguments: argparse.Namespace) -> None:
    from fibec_ray.jobs.follow import lacking

    cluster = _cluster(arguments)
    job = cluster.job(arguments.job)
    if arguments.follow:
        _follow(cluster, job.id)
    else:
        log = cluster.log(job.id)
        print(log, end="")
        if job.status == "FAILED" and (cause := lacking(log)):
            warn(cause)


def _stop(arguments: argparse.Namespace) -> None:
    from fibec_ray.jobs.follow import settled

    cluster = _cluster(arguments)
    job = cluster.job(arguments.job)
    if not cluster.stop(job.id):
        print(f"{job.id}: had already ended ({job.status.lower()})")
        return
    print(f"{job.id}: {settled(cluster, job.id).status.lower()}")


def _fetch(arguments: argparse.Namespace) -> None:
    from fibec_ray.files.run_dir import absolute, next_free
    from fibec_ray.jobs.fetch import fetch, folder_name

    cluster = _cluster(arguments)
    job = cluster.job(arguments.job)
    target = arguments.dest or next_free(Path("runs"), folder_name(job))
    left_out = fetch(cluster, job, absolute(target), arguments.shared)
    note = f" (without {' and '.join(left_out)}, which stay on the cluster)" if left_out else ""
    print(f"run directory: {target}{note}")


def _follow(cluster: Cluster, id_: str) -> None:
    from fibec_ray.jobs.follow import follow

    with advice(lambda: f"job {id_} keeps running; end it with: fibec-ray stop {id_}"):
        job = follow(cluster, id_, partial(print, end="", flush=True))
    if job.status == "STOPPED":
        print(f"{job.id}: stopped", file=sys.stderr)
