"""Follow a job: print its log as it grows, and say how it ended."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable

from fibec_ray.errors import ClusterError, JobFailed
from fibec_ray.jobs.client import Cluster, Job
from fibec_ray.jobs.messages import in_our_words

SETTLE_S = 60
"""The longest wait for a job's final status, after its log has ended or it was told to stop."""
ATTEMPTS = 5
"""Reconnections in a row to a log that brings nothing new."""
POLL_S = 0.5
MISSING = re.compile(r"(?:ModuleNotFoundError|ImportError).*No module named '?([\w.]+)|: No module named ([\w.]+)")
NO_PYTHON = re.compile(r"python: (?:command )?not found")


def follow(cluster: Cluster, id_: str, write: Callable[[str], None]) -> Job:
    """Write the log as it grows; returns when the job has succeeded or was stopped. Raises JobFailed."""
    asyncio.run(_tail(cluster, id_, write))
    return refuse_failure(settled(cluster, id_), cluster.log(id_))


def settled(cluster: Cluster, id_: str) -> Job:
    """The job once it has ended. Raises ClusterError after SETTLE_S seconds."""
    deadline = time.monotonic() + SETTLE_S
    while not (job := cluster.info(id_)).ended:
        if time.monotonic() > deadline:
            raise ClusterError(f"{id_}: still {job.status.lower()} after {SETTLE_S} s; see `fibec-ray jobs`")
        time.sleep(POLL_S)
    return job


def refuse_failure(job: Job, log: str) -> Job:
    """The job, unless it failed. Raises JobFailed with the cause that its log gives."""
    if job.status != "FAILED":
        return job
    cause = lacking(log) or last_words(log) or in_our_words(first_line(job.message))
    raise JobFailed(f"job {job.id} failed: {cause}")


def lacking(log: str) -> str:
    """What the cluster's Python lacks, and how to add it; '' if the log reports nothing missing."""
    if NO_PYTHON.search(log):
        return "the cluster has no command `python`; use an image with Python and the libraries of constraints.txt"
    found = MISSING.search(log)
    if found is None or "fibec-ray: " in log:
        return ""
    name = (found.group(1) or found.group(2)).partition(".")[0]
    if name == "fibec_ray":
        return "the cluster's Python has no fibec_ray; submit without --installed, so that the code travels"
    return (
        f"the cluster's Python has no library `{name}`: a job brings this package's code, not its libraries; install "
        "them in the image of every node (`pip install -c constraints.txt fibec_ray`; cluster/README.md)"
    )


def last_words(log: str) -> str:
    """The line in which our command says what went wrong, or the log's last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    ours = [line.removeprefix("fibec-ray: ") for line in lines if line.startswith("fibec-ray: ")]
    return (ours or lines or [""])[-1]


def first_line(message: str) -> str:
    """The first line of a message."""
    return (message.splitlines() or ["it gave no reason"])[0]


async def _tail(cluster: Cluster, id_: str, write: Callable[[str], None]) -> None:
    """Write the log. After a broken connection it starts again from the top, and what was written before is skipped."""
    import aiohttp

    written, failures = 0, 0
    while failures < ATTEMPTS:
        position = 0
        try:
            async for text in cluster.tail(id_):
                fresh = text[max(0, written - position) :]
                position += len(text)
                if fresh:
                    write(fresh)
                    written, failures = max(written, position), 0
            return
        except (RuntimeError, OSError, aiohttp.ClientError):
            failures += 1
            await asyncio.sleep(POLL_S * failures)
    raise ClusterError(
        f"{id_}: the connection to its log at {cluster.url} broke; the job continues: `fibec-ray logs {id_} --follow`"
    )
