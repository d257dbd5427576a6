"""The process that starts a local cluster and keeps it: run_head.py runs it, and local_cluster.py talks to it over its
pipes.

It prints one line of JSON: {"address": HOST:PORT}, or {"why": reason} if Ray does not start. The cluster ends when
standard input closes, which happens when the driver closes it or ends in any other way.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from textwrap import shorten
from typing import TextIO

import ray
from ray._private.node import Node

from fibec_ray.fleets.ray.init import LONGEST, captured_stderr, first_line, init, on_loopback

SERVICES = ("start_monitor", "start_log_monitor", "start_api_server")
"""Methods of Ray's Node that start processes which a run does not need: the autoscaler, the log monitor and the web
server. They cost 1.4 s of CPU and 1 s of waiting. Without them `ray status` does not work; Prometheus does."""
PRELOADED = "fibec_ray.fleets.ray.actors"
"""What workers import as soon as they start, before there is an actor."""
SAYS_ERROR = re.compile(r"\d [EFC] \d+ \d+\] (?:\([^)]*\) )?")
"""Start of an error line in the logs of Ray's C++ code: ... 123456 E 4711 4711] (raylet) main.cc:1: ..."""


def main(may_preload: bool) -> None:
    """Start a cluster and wait for the end of input. Arguments: folder, bytes of the object store, 1 to preload."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the driver too, which decides
    answers = _answers()
    folder, store, preload = Path(sys.argv[1]), int(sys.argv[2]), may_preload and sys.argv[3] == "1"
    with captured_stderr() as said:
        try:
            with on_loopback(), _without_services():
                init(
                    address="local",
                    include_dashboard=False,
                    object_store_memory=store,
                    _temp_dir=str(folder),
                    _system_config={"preload_python_modules": [PRELOADED] if preload else []},
                )
            answer = {"address": ray.get_runtime_context().gcs_address}
        except Exception as error:
            answer = {"why": f"{first_line(error)}{last_words(folder, said())}"}
    with suppress(BrokenPipeError):  # the driver has ended meanwhile
        print(json.dumps(answer), file=answers, flush=True)
    sys.stdin.read()
    ray.shutdown()


def _answers() -> TextIO:
    """The pipe to the driver. Whatever else is printed goes to standard error, and Ray's processes do not inherit the
    pipe, so that it ends with this process."""
    found = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return found


@contextmanager
def _without_services() -> Iterator[None]:
    """Make a new cluster start without SERVICES. `ray.init` has no settings for them."""
    before = {name: getattr(Node, name) for name in SERVICES if hasattr(Node, name)}
    for name in before:
        setattr(Node, name, lambda node, **settings: None)
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(Node, name, method)


def last_words(folder: Path, stderr: str) -> str:
    """The first error that one of Ray's processes logged, in brackets; '' if none did."""
    logs = [
        _read(path) for name in ("gcs_server", "raylet") for path in sorted(folder.glob(f"session_2*/logs/{name}*"))
    ]
    lines = [line for text in (*logs, stderr) for line in text.splitlines() if SAYS_ERROR.search(line)]
    return f" ({shorten(SAYS_ERROR.split(lines[0])[-1], LONGEST)})" if lines else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
