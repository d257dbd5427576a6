"""Follows a job: its log as it grows, and how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from fibec_ray.errors import ClusterError, JobFailed
from fibec_ray.jobs.client import Cluster, Job

SETTLE_S = 60
"""For a job whose log has ended to be said to have ended, and for one that is stopped to stop."""
ATTEMPTS = 5
"""At a log whose connection breaks, one after the other without anything new."""
POLL_S = 0.5


def follow(cluster: Cluster, id_: str, write: Callable[[str], None]) -> Job:
    """Writes the log as it grows; returns once the job has ended well, or was stopped. Raises JobFailed."""
    asyncio.run(_tail(cluster, id_, write))
    return refuse_failure(settled(cluster, id_), cluster.log(id_))


def settled(cluster: Cluster, id_: str) -> Job:
    deadline = time.monotonic() + SETTLE_S
    while not (job := cluster.info(id_)).ended:
        if time.monotonic() > deadline:
            raise ClusterError(f"{id_}: is {job.status.lower()} after {SETTLE_S} s still; see `fibec-ray jobs`")
        time.sleep(POLL_S)
    return job


def refuse_failure(job: Job, log: str) -> Job:
    """Raises JobFailed with the last thing that the job said of itself."""
    if job.status != "FAILED":
        return job
    raise JobFailed(f"job {job.id} failed: {last_words(log) or first_line(job.message)}")


def last_words(log: str) -> str:
    """The line in which our command says what went wrong; the log's last line if it never came to that."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    ours = [line.removeprefix("fibec-ray: ") for line in lines if line.startswith("fibec-ray: ")]
    return (ours or lines or [""])[-1]


def first_line(message: str) -> str:
    return (message.splitlines() or ["it said nothing"])[0]


async def _tail(cluster: Cluster, id_: str, write: Callable[[str], None]) -> None:
    """A connection that breaks is made again; the log then starts anew, and what has been written is skipped."""
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
        f"{id_}: its log at {cluster.url} breaks off; the job goes on, follow it with `fibec-ray logs {id_} --follow`"
    )
