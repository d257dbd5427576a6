"""Calls ray.init so that nothing of Ray reaches the terminal."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from textwrap import shorten
from typing import IO, Any

import ray
from ray.job_config import JobConfig

LONGEST = 300
"""Characters of a reason that Ray gives; some are pages of advice on other things."""

Note = Callable[[str], None]
"""Takes a line about what was done differently than asked."""


def init(**settings: Any) -> None:
    # No runtime_env of our own: its workers could not be those that Ray keeps ready, and would start seconds later.
    ray.init(log_to_driver=False, logging_level="ERROR", job_config=_job_config(), **settings)


def _job_config() -> JobConfig:
    """Keeps the working directory off the workers' sys.path, unless the driver has it there too.

    Ray puts it in front, where a user's queue.py or random.py takes the place of Python's. It leaves the path of a job
    of a Ray client alone.
    """
    here = {os.path.abspath(folder) for folder in sys.path if isinstance(folder, str)}
    return JobConfig(_client_job=os.getcwd() not in here)


@contextmanager
def captured_stderr() -> Iterator[Callable[[], str]]:
    """Catches what is written to file descriptor 2, which Ray's C++ parts write to, and gives what has come so far."""
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
    """Its sentence, or its name where it has none."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return shorten(lines[0], LONGEST).rstrip(".;:") if lines else type(error).__name__
