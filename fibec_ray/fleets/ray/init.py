"""Call ray.init without letting Ray write to the terminal."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import IO, Any

import ray
from ray._private import ray_constants
from ray.job_config import JobConfig

LONGEST = 300
"""Most characters of a reason that Ray gives; some are pages of unrelated advice."""


def init(**settings: Any) -> None:
    """Call ray.init with quiet logging."""
    # Without a runtime_env: Ray could not use the workers that it keeps ready, and ours would start seconds later.
    ray.init(log_to_driver=False, logging_level="ERROR", job_config=_job_config(), **settings)


@contextmanager
def on_loopback() -> Iterator[None]:
    """Make `init` start or join a cluster that listens on 127.0.0.1 only, as Ray does on macOS and Windows. Passing the
    address does not work: Ray replaces 127.0.0.1 by the network's address."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _job_config() -> JobConfig:
    """Keep the working directory off the workers' sys.path, unless the driver has it there too.

    Ray puts it first, where a user's queue.py or random.py would shadow Python's. It does not change the path of a Ray
    client's job, so we declare ours as one.
    """
    here = {os.path.abspath(folder) for folder in sys.path if isinstance(folder, str)}
    return JobConfig(_client_job=os.getcwd() not in here)


@contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Capture file descriptor 2, which Ray's C++ code writes to; yields a function that returns the text so far."""
    if sys.stderr is None:  # closed by whoever started us
        yield str
        return
    sys.stderr.flush()
    with tempfile.TemporaryFile() as file:
        before = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: _content(file)
        finally:
            os.dup2(before, 2)
            os.close(before)


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type's name if it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten(lines[0], LONGEST).rstrip(".;:") if lines else type(error).__name__
