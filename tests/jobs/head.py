"""A one-node cluster with token authentication, as a child process; used by the tests of jobs."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
REPOSITORY = Path(__file__).parents[2]
TOKEN = "a-token-of-the-tests-alone-0123456789"
CLIENT_PORT_RANGE = (20001, 25000)
"""Ray refuses to start if this port is among those of its workers, 10002 to 19999."""


@dataclass(frozen=True)
class Head:
    url: str
    environment: dict[str, str]
    """with which a command reaches it"""
    pid: int

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`fibec-ray ARGUMENTS`, run to its end."""
        done = subprocess.run(
            [sys.executable, "-m", "fibec_ray", *arguments],
            capture_output=True, text=True, timeout=180, env=self.environment | environment,
        )  # fmt: skip
        print("$ fibec-ray", *arguments, f"-> {done.returncode}\n{done.stdout}{done.stderr}")
        return done


@contextmanager
def head(home: Path) -> Iterator[Head]:
    """Its files are in a short path of its own (sockets allow no long ones); it ends by SIGTERM, by its pid."""
    token = home / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    with tempfile.TemporaryDirectory(prefix="fr-", dir="/tmp") as session:
        environment = environment_of(home, token)
        port = free_port()
        process = subprocess.Popen(
            [
                str(BIN / "ray"), "start", "--head", "--block", "--port=0", f"--dashboard-port={port}",
                "--dashboard-host=127.0.0.1", "--num-cpus=2", "--disable-usage-stats",
                "--dashboard-agent-listen-port=0", "--object-store-memory=150000000", f"--temp-dir={session}",
                f"--ray-client-server-port={free_port(*CLIENT_PORT_RANGE)}",
            ],
            env=environment, stdout=(home / "head.log").open("wb"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            url = f"http://127.0.0.1:{port}"
            wait_for(url, process, home / "head.log")
            yield Head(url, environment | {"RAY_API_SERVER_ADDRESS": url}, process.pid)
        finally:
            process.terminate()
            process.wait(timeout=60)


def environment_of(home: Path, token: Path) -> dict[str, str]:
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return ours | {
        "HOME": str(home),
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "FIBEC_RAY_CACHE": str(home / "cache"),
        "FIBEC_RAY_RUNS": str(home / "runs on the head"),
    }


def free_port(first: int = 0, last: int = 0) -> int:
    for port in range(first, last + 1):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise AssertionError(f"no port is free from {first} to {last}")


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until the job server answers, be it that it wants a token."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=5)
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError(f"the cluster did not come up: {log.read_text()}")
