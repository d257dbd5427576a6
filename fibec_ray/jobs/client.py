"""Talk to a cluster's job server. Errors say what to do."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from fibec_ray.errors import ClusterError, did_you_mean
from fibec_ray.fleets.ray.token import HOW_TO_SET_A_TOKEN
from fibec_ray.jobs.address import settle, without_secrets
from fibec_ray.jobs.messages import in_our_words

CHATTY = (
    "ray._private.runtime_env.packaging",
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
)
"""Loggers that report uploads and addresses, which our commands do not print."""
WARMING_UP = "No available agent"
"""In the job server's answer while a cluster is coming up."""
WARM_UP_S = 90
HELPER = "fibec_helper"
"""Metadata key of a job that a command starts for itself, such as one that packs a run directory. It is hidden from
`jobs`, not deleted: Ray 2.60 lists a job that is deleted right after its end as failed."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Job:
    """One attempt at a run: submissions of the same name are NAME, NAME.2, NAME.3 ..."""

    id: str
    status: str
    """PENDING, RUNNING, or one of ENDED"""
    message: str
    start_s: float
    """seconds since 1970; 0 if it has not started"""
    end_s: float | None
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name given with --name, or else the id."""
        return self.metadata.get("fibec_name", self.id)

    @property
    def out(self) -> str | None:
        """The run directory, a URL or a path on the cluster; None for a job that fibec-ray did not submit."""
        return self.metadata.get("fibec_out")

    @property
    def ended(self) -> bool:
        """True if the job runs no more."""
        return self.status in ENDED


class Cluster:
    """A cluster's job server. Every method raises ClusterError if the server refuses or does not answer."""

    def __init__(self, address: str | None, warn: Callable[[str], None] = lambda text: None):
        url = settle(address, warn=warn)
        self._secret = urlsplit(url).netloc.rpartition("@")[0]
        self.url = without_secrets(url)
        """for messages: without a user and a password"""
        from ray.job_submission import JobSubmissionClient

        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        with self._errors():
            self._client = JobSubmissionClient(url)

    def submit(self, entrypoint: str, id_: str, runtime_env: dict[str, Any], metadata: dict[str, str]) -> None:
        """Submit a job; waits up to WARM_UP_S seconds for a cluster that is coming up."""
        deadline = time.monotonic() + WARM_UP_S
        with self._errors():
            while True:
                try:
                    self._client.submit_job(
                        entrypoint=entrypoint, submission_id=id_, runtime_env=runtime_env, metadata=metadata
                    )
                    return
                except RuntimeError as error:
                    if WARMING_UP not in str(error) or time.monotonic() > deadline:
                        raise
                time.sleep(1)

    def jobs(self) -> list[Job]:
        """The submitted jobs, oldest first, without those that HELPER marks."""
        with self._errors():
            listed = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        found = [job for job in listed if HELPER not in job.metadata]
        return sorted(found, key=lambda job: (job.start_s, job.id))

    def job(self, name: str) -> Job:
        """A job by its id, or the newest of a name. Raises ClusterError if there is none."""
        jobs = self.jobs()
        for job in reversed(jobs):
            if job.id == name:
                return job
        named = [job for job in jobs if job.name == name]
        if not named:
            known = {job.id for job in jobs}
            raise ClusterError(f"{name}: no such job on {self.url}; {did_you_mean(name, known)}")
        return named[-1]

    def info(self, id_: str) -> Job:
        """A job by its id, hidden ones too."""
        with self._errors():
            return _job(self._client.get_job_info(id_))

    def stop(self, id_: str) -> bool:
        """Stop a job; False if it had ended before."""
        with self._errors():
            return bool(self._client.stop_job(id_))

    def log(self, id_: str) -> str:
        """The job's log so far. Raises ClusterError."""
        with self._errors():
            return str(self._client.get_job_logs(id_))

    def tail(self, id_: str) -> AsyncIterator[str]:
        """The log from its beginning, as it grows, until the job ends."""
        lines: AsyncIterator[str] = self._client.tail_job_logs(id_)
        return lines

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            wrong = "asks for a token, and there is none here" if "required" in str(error) else "rejects our token"
            raise ClusterError(f"--address: {self.url}: {wrong}; {HOW_TO_SET_A_TOKEN}") from error
        except (ConnectionError, requests.RequestException) as error:
            raise ClusterError(
                f"--address: {self.url}: does not answer as a job server does ({self._said(in_our_words(str(error)))})"
            ) from error
        except (RuntimeError, ValueError) as error:
            said = self._said(in_our_words(_last_line(error)))
            raise ClusterError(f"{self.url}: the request was rejected: {said}") from error

    def _said(self, text: str) -> str:
        """A library's message without the password that it may repeat."""
        return text.replace(f"{self._secret}@", "") if self._secret else text


def _job(details: Any) -> Job:
    return Job(
        id=details.submission_id,
        status=str(getattr(details.status, "value", details.status)),
        message=details.message or "",
        start_s=(details.start_time or 0) / 1000,
        end_s=details.end_time / 1000 if details.end_time else None,
        metadata=details.metadata or {},
    )


def _last_line(error: Exception) -> str:
    """The last line of a server's traceback, which says what went wrong."""
    lines = [line.strip() for line in str(error).replace("\\n", "\n").splitlines() if line.strip(" .\"'")]
    return lines[-1] if lines else type(error).__name__
