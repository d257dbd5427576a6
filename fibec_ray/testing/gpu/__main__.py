"""`python -m fibec_ray.testing.gpu`: runs the steps, prints one line per step, and writes all results to a file."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fibec_ray.cli import entry
from fibec_ray.errors import ConfigError, RunError

if TYPE_CHECKING:
    from fibec_ray.testing.gpu.lines import Findings, Section

NAMES = ("product", "methods", "actors", "lanes", "seven", "backends", "models", "settings", "resume", "memory")
TABLES = {"stream": 40, "speed": 150}
"""Steps that measure, and their limits in seconds."""
LIMIT_S = 540
"""Limit for everything in seconds. Steps that have not finished by then are stopped and count as failed."""
SIDE_BY_SIDE = 3
"""Steps at a time, where there are four cores for each."""
SLOWER_ON_CPU = 10
"""On a CPU all limits are this many times as long."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Exit codes: 0 nothing failed, 1 a step failed, 2 there is no GPU, or bad input."""
    return entry.run(partial(_parse, argv))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m fibec_ray.testing.gpu",
        description="Check the engine on this machine's GPU: every method against the CPU, lanes, actors on fractions "
        "of the GPU, backends, memory caps, speed. Takes about 6 minutes.",
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="results, as JSON; a .md is beside it")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: try the check itself")
    parser.add_argument("--small", action="store_true", help="few methods and tiny models")
    parser.add_argument("--only", metavar="STEP[,STEP]", help=f"steps to run, of {', '.join([*NAMES, *TABLES])}")
    parser.add_argument("--methods", metavar="NAME[,NAME]", default="", help="methods to check; by default all")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds for everything; by default %(default)s")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep runs and output in this new folder")
    parser.set_defaults(command=_check, prints=False)
    return parser.parse_args(argv)


def _check(arguments: argparse.Namespace) -> None:
    names = _steps(arguments.only)
    about = _about(arguments.device)
    if arguments.keep and arguments.keep.exists():
        raise ConfigError(f"--keep: {arguments.keep} exists already; name a new folder")
    with tempfile.TemporaryDirectory(prefix="fibec-ray-gpu-") as temporary:
        failed = _run(names, arguments, about, arguments.keep or Path(temporary))
    if failed:
        raise RunError(f"failed: {', '.join(failed)}; {arguments.out} says what")


def _run(names: Sequence[str], arguments: argparse.Namespace, about: Mapping[str, str], folder: Path) -> Sequence[str]:
    from fibec_ray.testing.gpu.child import in_child, measured
    from fibec_ray.testing.gpu.lines import Findings
    from fibec_ray.testing.gpu.steps import STEPS

    device, small, findings = arguments.device, arguments.small, Findings(arguments.out, about)
    slower = SLOWER_ON_CPU if device == "cpu" else 1
    only = arguments.methods.split(",") if arguments.methods else []
    end = time.monotonic() + arguments.limit * slower

    def check(name: str) -> Section:
        limit_s = min(STEPS[name].limit_s * slower, end - time.monotonic())
        return in_child(name, device, small, folder / name, only, limit_s)

    with ThreadPoolExecutor(max(1, min(SIDE_BY_SIDE, (os.cpu_count() or 1) // 4))) as pool:
        for done in as_completed(pool.submit(check, name) for name in names if name not in TABLES):
            _tell(done.result(), findings)
    for name in [name for name in names if name in TABLES]:  # one at a time, since they measure
        command = [sys.executable, "-m", *_measurement(name, device, small)]
        limit_s = min(TABLES[name] * slower, end - time.monotonic())
        _tell(measured(name, command, folder / name, limit_s), findings)
    return findings.failed


def _tell(section: Section, findings: Findings) -> None:
    """Keep and print a section."""
    findings.add(section)
    print(section.summary, flush=True)
    for line in section.lines:
        if line.verdict == "FAILED":
            print(f"        {line.what}: {line.text}", flush=True)
    if section.table:
        print(section.table, flush=True)


def _steps(only: str | None) -> Sequence[str]:
    known = [*NAMES, *TABLES]
    names = only.split(",") if only else known
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"--only: no step is called {unknown[0]!r}; there are {', '.join(known)}")
    return [name for name in known if name in names]


def _about(device: str) -> dict[str, str]:
    """Date, machine and versions. Raises ConfigError without a GPU."""
    import torch

    from fibec_ray.bench.machine import machine

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError(
            "torch sees no GPU here; install a torch that is built for this machine's GPU, or try the check itself "
            "with --device cpu --small"
        )
    about = {"date": f"{datetime.now():%Y-%m-%d %H:%M}", "machine": machine()}
    if device == "cuda":
        about["GPU"] = (
            f"{torch.cuda.get_device_name()}, {torch.cuda.get_device_properties(0).total_memory / 1e9:.1f} GB"
        )
        about["CUDA"] = str(torch.version.cuda)
    return about | {"device": device, "command": " ".join(["python -m fibec_ray.testing.gpu", *sys.argv[1:]])}


def _measurement(name: str, device: str, small: bool) -> Sequence[str]:
    """The module that prints a table, and its options."""
    if name == "stream":
        sizes = ["--hidden", "64", "--inner", "128", "--tokens", "8"] if small else []
        return ["fibec_ray.bench.stream", "--device", device, *sizes]
    options = ["--device", device, "--fleet", "local", "--smallest" if small else "--short"]
    return ["fibec_ray.bench.gpu", *options]


if __name__ == "__main__":
    raise SystemExit(main())
